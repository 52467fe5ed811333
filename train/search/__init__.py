"""The search itself: `python -m train.search.search RECIPE` is one rank of a run that a launcher starts."""
