"""`python -m train.search RECIPE`: one rank of a search that a launcher started."""

from train.search.search import main

main()
