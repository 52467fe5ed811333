"""Small proxies that differ in mixture and seed alone, trained at once on a GPU."""
