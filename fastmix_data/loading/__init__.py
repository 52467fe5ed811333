"""What stands around the manifest's dataset in a trainer: reading ahead, inputs of other libraries, tokens and loss per source."""
