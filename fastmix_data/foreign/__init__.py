"""Tokens that other tools have written: where they lie in their files, and whether these are what they say."""
