"""Manifests in the formats of production trainers."""
