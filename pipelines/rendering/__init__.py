"""From documents to the texts that are encoded: pairs joined, conversations written out by a chat template."""
