"""Jobs that a user starts: `from pipelines.flow import run`, and the `fastmix` command."""
