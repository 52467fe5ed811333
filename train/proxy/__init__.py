"""The model that trains: its configuration, engine, losses, checkpoints and the training loop."""
