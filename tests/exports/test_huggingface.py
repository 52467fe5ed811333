from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from other_readers import read_with

from fastmix_data.exports.pools import pools_of
from fastmix_data.loader import ManifestDataset
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.manifest.parts import Part
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.results.mixture import Mixture
from pipelines.export.run import export


def _blocks(manifest: Manifest, part: Part) -> list[dict[str, Any]]:
    """Rows that a part should have, read from its shard."""
    shard, block = manifest.open(part, root=manifest.root_path), manifest.block_tokens
    rows = []
    for number in range(-(-part.num_labels // block)):
        at = part.block_start + number
        row = {
            "source": part.source,
            "input_ids": shard.tokens_NT[at].tolist(),
            "num_labels": min(part.num_labels - number * block, block),
        }
        if manifest.example_tokens is not None:
            mask, starts = shard.loss_mask_NT, shard.starts_NT
            row["loss_mask"] = [True] * (block + 1) if mask is None else (mask[at] != 0).tolist()
            row["starts"] = [0] * (block + 1) if starts is None else starts[at].tolist()
        rows.append(row)
    return rows


def _as_loaded(item: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    """An item of the script in the terms of our own loader: tokens, labels shifted, positions."""
    tokens, labels = item["input_ids"], item["labels"]
    positions = item.get("position_ids", list(range(len(tokens))))
    return tuple(tokens[:-1]), tuple(labels[1:]), tuple(positions[:-1])


@pytest.mark.parametrize("which", ["plain", "masked"])
def test_datasets_reads_every_block_of_every_pool_and_the_script_has_the_order_of_the_manifest(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    manifest: Manifest = request.getfixturevalue(f"{which}_manifest")
    exported = export(manifest.path, to="huggingface", directory=tmp_path / "hf", max_file_bytes=2000)
    rows = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "hf/data/books").glob("*.parquet"))]
    assert len(rows) > 1 and set(rows[:-1]) == {2000 // (17 * (4 if which == "plain" else 6))}  # parts share files, uncompressed
    found = read_with("huggingface", tmp_path / "hf", tmp_path / "cache", package="datasets")
    pools = pools_of(manifest)
    assert found["configs"] == {pool.name: [row for part in pool.parts for row in _blocks(manifest, part)] for pool in pools}
    names = ("tokens", "labels", "positions")
    ours = [tuple(tuple(item[name].tolist()) for name in names) for item in ManifestDataset(manifest.path)]
    streamed = [_as_loaded(item) for item in found["streamed"]]
    assert [_as_loaded(item) for item in found["items"]] == ours != streamed
    assert Counter(streamed) == Counter(ours) and max(Counter(ours).values()) >= 2
    wanted = Counter({pool.source: 0 for pool in pools})
    for pool in pools:
        wanted[pool.source] += pool.repeats * len(found["configs"][pool.name])
    exact, first, every = (Counter(sources) for sources in found["sources"].values())
    assert exact == wanted and f"{exact['code']} " in found["printed"] and "1.0000" in found["printed"]
    # One ends with the first source that is read, the other goes on until all are.
    assert all(first[name] <= wanted[name] <= every[name] for name in wanted) and first != wanted != every
    card = (tmp_path / "hf" / "README.md").read_text()
    for value in (manifest.sha256, manifest.catalog_hash, manifest.tokenizer_sha256, f"| seed | {manifest.seed} |"):
        assert value in card
    assert all(f"`{pool.name}` × {pool.repeats}" in card for pool in pools) and exported.files[0].name == "interleave.py"


def test_a_last_block_of_one_token_has_no_row_and_that_is_said(make_catalog: Callable[..., Any], tmp_path: Path) -> None:
    catalog = make_catalog({"books": [16 * 9 + 1]})
    only, section = Mixture(weights={"books": 1.0}), EmitSection(token_budget=145)
    manifest = emit_manifest(catalog, only, emit=section, directory=catalog.root / "manifest")
    exported = export(manifest.path, to="huggingface", directory=tmp_path / "hf")
    assert exported.remarks[0].startswith("1 last blocks of one token have no label and no row")
    assert pq.read_table(next((tmp_path / "hf" / "data").rglob("*.parquet"))).num_rows == 9
