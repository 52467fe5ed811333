"""What the mixture should be good at: losses on held-out data, alone or against a reference run."""
