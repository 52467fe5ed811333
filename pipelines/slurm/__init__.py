"""A recipe as jobs of SLURM: their scripts, their submission, and Dask workers in an allocation."""
