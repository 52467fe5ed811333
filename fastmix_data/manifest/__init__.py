"""The corpus to ship: how many tokens of each source, in which blocks, in which order."""
