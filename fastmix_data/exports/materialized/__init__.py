"""A run as shards of its own, in the order that it is read in."""
