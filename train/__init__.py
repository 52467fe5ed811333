"""The proxy run that learns the mixture: `from train.search.search import search`."""
