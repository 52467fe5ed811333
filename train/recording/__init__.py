"""What a search tells while it runs: metrics, sinks, a log for each rank."""
