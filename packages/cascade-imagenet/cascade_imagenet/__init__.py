"""A folder of data: `cascade.json` and its stages. Nothing here is imported."""
