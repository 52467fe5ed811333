"""Checkpoints of a proxy in training: written while it trains on, verified, and read again by any number of ranks."""
