"""Write the demo's code into many sources, one per module or header, and a recipe that weighs them all.

    fastmix demo --dir examples/fastmix-demo
    python examples/many_sources.py --sources 64
    fastmix run examples/fastmix-demo/many/recipe.yaml

The search scores every training sequence against one target gradient, so a step costs the same for 8 sources and for 512. What
does grow is the evidence needed: a source is judged by its own sequences, so give a search of K sources a budget of at least some
hundred sequences of each. Sources that resemble each other are listed in mixture.json under `certainty.interchangeable`: only the
sum of their shares means something.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import yaml

DEMO = Path(__file__).parent / "fastmix-demo"


def documents_by_id(demo: Path) -> dict[str, str]:
    """Text of every module and header of the demo."""
    rows = pq.read_table(demo / "code" / "train.parquet").to_pylist()
    with gzip.open(demo / "headers" / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows += [json.loads(line) for line in lines]
    return {row["id"]: row["text"] for row in rows}


def write_sources(folder: Path, documents: dict[str, str], num_sources: int) -> dict[str, dict[str, str]]:
    """The largest documents, each in a file of its own: the `sources` section of the recipe."""
    largest = sorted(documents, key=lambda name: (-len(documents[name]), name))[:num_sources]
    if len(largest) < num_sources:
        raise SystemExit(f"the demo has {len(largest)} modules and headers; ask for no more than that with --sources")
    folder.mkdir(parents=True, exist_ok=True)
    sources = {}
    for number, name in enumerate(largest):
        source = f"{number:03d}-" + re.sub(r"[^A-Za-z0-9]+", "-", name)[-40:].strip("-")
        (folder / f"{source}.jsonl").write_text(json.dumps({"text": documents[name]}) + "\n")
        sources[source] = {"files": f"{source}.jsonl"}
    return sources


def recipe(sources: dict[str, dict[str, str]]) -> dict[str, object]:
    """The answer to: which of these modules and headers teach most about docstrings?"""
    return {
        "workdir": "run",
        "tokenizer": {"train": {"vocab_size": 4096}},
        "sources": sources,
        "shards": {"block_tokens": 1024, "valid_fraction": 0},  # a source is one document here: nothing to hold out
        "target": {"files": {"docstrings": {"files": "../docstrings/valid.jsonl.zst"}}},
        "proxy": {
            "config": {
                "model_type": "llama",
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 172,
            }
        },
        "training": {"token_budget": "1M", "global_batch": 64, "sequence_length": 64},
        "search": {"exploration": 0.5},
        "emit": {"token_budget": "200K", "max_epochs": 4},
    }


def main() -> None:
    """Write files and recipe."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--sources", type=int, default=64, help="how many, up to the number of modules and headers of the demo")
    parser.add_argument("--demo", type=Path, default=DEMO, help="folder that `fastmix demo --dir` wrote")
    options = parser.parse_args()
    if not (options.demo / "code" / "train.parquet").exists():
        raise SystemExit(f"{options.demo}: there is no demo; run `fastmix demo --dir {options.demo}` first")
    folder = options.demo / "many"
    sources = write_sources(folder, documents_by_id(options.demo), options.sources)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(sources), sort_keys=False))
    print(f"wrote {len(sources)} sources and {path}")


if __name__ == "__main__":
    main()
