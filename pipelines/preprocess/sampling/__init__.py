"""Tokenizing a sample of every source: which documents are in it, how large a part that is, and what it says of the whole."""
