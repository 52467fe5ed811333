"""Weights on the simplex: where they start, what bounds them, what moves them."""
