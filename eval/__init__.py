"""Scores images; knows no models: features, statistics, metrics, references."""
