"""`fastmix watch`: a search as it runs, in the terminal."""
