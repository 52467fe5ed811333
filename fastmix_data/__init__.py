"""What is on disk and how it is read: recipe, shards, catalog, sampler, manifest.

Import from the module that defines a name, for example `from fastmix_data.loader import ManifestDataset`; the package itself imports nothing,
so that a trainer that only reads a manifest pays only for that.
"""
