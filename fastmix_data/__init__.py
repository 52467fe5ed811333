"""What is on disk and how it is read: recipe, shards, catalog, sampler, manifest.

Import from the module that defines a name, for example `from fastmix_data.loader import ManifestDataset`. The package itself imports
nothing, so a trainer that only reads a manifest pays only for that.
"""
