"""The card of a corpus as a data set of the Hugging Face hub: README.md, whose first lines say which files are which data set."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fastmix_data.exports.pools import Pool
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.units import format_count

CARD = "README.md"
_ABOUT = """
One row is one block of {block} tokens.

| column | what |
|---|---|
| `source` | where the block is from |
| `input_ids` | {length} tokens: the block's own, and one more, which is the label of the last (and the next block's first) |
| `num_labels` | labels that are real: {block}, but fewer in the last block of a run, which is padded |
{mask_rows}
```python
from datasets import load_dataset

blocks = load_dataset("path/of/this/folder", "{example}", split="train")
```

`interleave.py` makes the training stream of it: in the manifest's own order, which is in `order.npy`, or drawn with
`interleave_datasets`, of whose stopping strategies it says what they do to shares and epochs. By default every block comes exactly as
often as the table says.
"""
_MASK_ROWS = """| `loss_mask` | whether each token carries loss where it is the label |
| `starts` | 1 where an example begins, 2 where padding does, else 0 |
"""


def dataset_card(manifest: Manifest, pools: Sequence[Pool]) -> str:
    """README.md with a configuration for each pool, by which `datasets` loads it."""
    # In quotes, which JSON has as YAML does: a source may be called `on` or `1`.
    configurations = [
        line
        for pool in pools
        for line in (
            f"- config_name: {json.dumps(pool.name)}",
            "  data_files:",
            "  - split: train",
            f"    path: {json.dumps(f'data/{pool.name}/*.parquet')}",
        )
    ]
    about = _ABOUT.format(
        block=manifest.block_tokens,
        length=manifest.block_tokens + 1,
        mask_rows=_MASK_ROWS if manifest.example_tokens is not None else "",
        example=pools[0].name,
    )
    lines = [
        *("---", "configs:", *configurations, "tags:", "- fastmix", "- pretokenized", "---", ""),
        f"# A corpus of {format_count(manifest.num_tokens)} tokens from {len(manifest.sources)} sources",
        "",
        "Token blocks in the proportions of a mixture, written by `fastmix export --to huggingface` from a manifest of `fastmix emit`.",
        about,
        *_source_table(manifest, pools),
        "",
        *_made_from(manifest),
    ]
    return "\n".join(lines) + "\n"


def _source_table(manifest: Manifest, pools: Sequence[Pool]) -> list[str]:
    lines = [
        "## Sources",
        "",
        "`weight` was asked for, `share` is what came out. `epochs` is how often the source is read, all of it or in part; a data set",
        "is read as often as stands beside it.",
        "",
        "| source | weight | share | tokens | unique tokens | epochs | at most | data sets |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for source in manifest.sources:
        read = ", ".join(f"`{pool.name}` × {pool.repeats}" for pool in pools if pool.source == source.name)
        cells = (
            f"{source.weight:.6g}",
            f"{source.share:.6g}",
            f"{source.num_tokens:,}",
            f"{source.unique_tokens:,}",
            f"{source.epochs:.4g}",
            f"{source.max_epochs:g}{' (reached)' if source.capped else ''}",
            read or "none",
        )
        lines.append(f"| {source.name} | {' | '.join(cells)} |")
    return lines


def _made_from(manifest: Manifest) -> list[str]:
    rows = (
        ("tokens", f"{manifest.num_tokens:,} of {manifest.token_budget:,} asked for"),
        ("seed", manifest.seed),
        ("vocabulary", f"{manifest.vocab_size:,}, documents end with {manifest.eos_id}"),
        ("tokenizer.json, sha256", f"`{manifest.tokenizer_sha256}`"),
        ("manifest", f"`{manifest.sha256}`"),
        ("catalog of shards", f"`{manifest.catalog_hash}`"),
        ("mixture", f"`{manifest.mixture_hash}`"),
        ("recipe of the emit section", f"`{manifest.recipe_hash}`"),
    )
    return ["## Made from", "", "| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
