"""Reading documents of any supported format to Arrow batches of text."""
