"""What a proxy's training takes of each rank's memory, before anything is trained."""
