"""People choosing between a real and a made picture (2AFC): a study's pairs and page, its server, and fool rates of the answers.

Knows no models: real and made pictures come as sets.
"""
