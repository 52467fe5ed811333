"""The `fastmix` command. Heavy modules are imported by the command that needs them, so that --help answers at once."""
