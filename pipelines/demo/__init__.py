"""A corpus from what every Python installation carries."""
