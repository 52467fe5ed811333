"""Looking at artefacts and checking them against what they recorded."""
