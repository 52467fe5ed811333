"""What trainings on proposed mixtures say: the losses of a round, and the verdict on all rounds."""
