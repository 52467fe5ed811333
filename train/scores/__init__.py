"""How much a step on each source helps the target, and how sure that is."""
