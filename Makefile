.PHONY: check format test bench

check:  ## static checks; changes no file
	ruff format --check .
	ruff check .
	mypy

format:  ## rewrite the code in the house style
	ruff format .
	ruff check --fix .

test:
	bash scripts/test.sh

bench:  ## tables with ratios; needs FASTMIX_CORPUS
	python scripts/bench/preprocess.py
	python scripts/bench/loader.py
	python scripts/bench/search_overhead.py
