"""A manifest in the format of another trainer: which files to write, by whom, and when that was done before."""
