"""Formats of headerless token files: the tokens of a pool end to end."""
