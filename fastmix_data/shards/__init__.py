"""Tokens on disk: strided shards, the catalog that lists them, and sequences cut from them."""
