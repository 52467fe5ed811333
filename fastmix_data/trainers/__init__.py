"""Manifests in the loops of other trainers: what these build and call, around our own loader."""
