"""Source files to shards, on Dask."""
