"""A corpus as Parquet files with a row per block, and what lies beside them in a data set of the Hugging Face hub."""
