"""`python -m pipelines.cli`, which `python -m train.search` becomes."""

from pipelines.cli.main import main

main(prog_name="fastmix")
