"""Ranks that a launcher started: where they meet, what they must agree on, and how the failure of one ends all."""
