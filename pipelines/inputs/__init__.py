"""What a recipe names as input: files, datasets, and their partition into units of work."""
