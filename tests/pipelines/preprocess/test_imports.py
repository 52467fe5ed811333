"""Tokens that are there already: used where they lie, exactly, or refused in one line before anything is written."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_corpora import json_lines, run, texts
from written_tokens import EOS, FORMATS, datatrove, documents, mds, megatron, olmo

from fastmix_data.audit.verify import verify
from fastmix_data.errors import CorruptArtefactError, FastmixError, InputError, MismatchError, RecipeError
from fastmix_data.exports.flat.foreign_files import whole_files
from fastmix_data.exports.part_tokens import check_unchanged, read_part
from fastmix_data.exports.pools import pools_of
from fastmix_data.loader import IGNORED_LABEL, ManifestDataset
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest, load_manifest
from fastmix_data.recipe.load import load_recipe
from fastmix_data.recipe.recipe import Recipe
from fastmix_data.results.mixture import Mixture
from fastmix_data.shards.catalog import Catalog
from pipelines.export.run import export
from pipelines.preprocess.plan import plan_preprocess

BLOCK = 64


def recipe_of(folder: Path, sources: dict[str, Any], **changes: Any) -> Recipe:
    content = {
        "tokenizer": {"bytes": True},
        "sources": sources,
        "shards": {"block_tokens": BLOCK, "valid_fraction": 0.1, "max_shard_bytes": 12_000},
        "target": {"sources": {next(iter(sources)): 1}},
        "training": {"token_budget": "20k", "sequence_length": 32, "global_batch": 4},
        "emit": {"token_budget": "40k", "max_epochs": 4},
    }
    (folder / "recipe.yaml").write_text(json.dumps(content | changes))
    return load_recipe(folder / "recipe.yaml")


def emit_evenly(recipe: Recipe, catalog: Catalog) -> Manifest:
    weights = dict.fromkeys(catalog.sources, 1 / len(catalog.sources))
    assert recipe.emit is not None
    return emit_manifest(catalog, Mixture(weights=weights), emit=recipe.emit, directory=recipe.paths.manifest.root)


def stream(catalog: Catalog, source: str, split: str) -> np.ndarray:
    """All tokens of a source's split, in the order of its rows."""
    rows = catalog.by_split[source, split]
    return np.concatenate(
        [np.asarray(catalog.open(row).tokens_NT[0 : row.num_blocks, :-1]).reshape(-1)[: row.num_tokens] for row in rows]
    )


def own_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run").rglob("*.tar"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_token_of_a_file_is_in_the_catalog_and_nothing_but_its_end_is_written(tmp_path, name):
    docs, more = documents(0, 120), documents(1, 40)
    FORMATS[name](tmp_path, "web", docs)
    valid = FORMATS[name](tmp_path, "web-valid", more)
    tokens = {**valid, name: valid[name].replace("-valid", "")}
    recipe = recipe_of(tmp_path, {"web": {"tokens": tokens, "valid_tokens": valid}})
    result = run(recipe)
    catalog = result.catalog
    for split, written in (("train", docs), ("valid", more)):
        flat = np.concatenate(written)
        found = stream(catalog, "web", split)
        # Ends of files come last, as they are written to a shard of ours.
        num_flat = sum(row.num_tokens for row in catalog.by_split["web", split] if row.storage != "tail")
        if name != "mds":
            np.testing.assert_array_equal(found, flat)
            assert sum(row.num_documents for row in catalog.by_split["web", split]) == len(written)
        else:
            first = np.concatenate(written[: len(written) // 2])
            np.testing.assert_array_equal(found[: (len(first) - 1) // BLOCK * BLOCK], first[: (len(first) - 1) // BLOCK * BLOCK])
            assert np.array_equal(np.sort(found), np.sort(flat))
        assert len(found) - num_flat <= 2 * BLOCK
    assert own_files(tmp_path) == ["train-000000-00000.tar", "valid-000000-00000.tar"]
    report = verify(recipe.paths.root, quiet=True)
    assert report.ok and report.num_foreign == (4 if name == "mds" else 2) and "by samples" in str(report), str(report)
    assert "nothing to do" in run(recipe).message


def test_the_loader_gives_each_token_of_whole_epochs_as_often_as_the_manifest_says(tmp_path):
    docs = [documents(number, 60) for number in range(2)]
    for number, each in enumerate(docs):
        megatron(tmp_path, f"web{number}", each, dtype="int32")
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts("a", 80)))
    shards = {"block_tokens": BLOCK, "valid_fraction": 0, "max_shard_bytes": 12_000}
    recipe = recipe_of(
        tmp_path,
        {"web": {"tokens": {"megatron": "web?"}}, "a": {"files": "a.jsonl"}},
        shards=shards,
        target={"files": {"t": {"tokens": {"megatron": "web1"}}}},
    )
    catalog = run(recipe).catalog
    flat = np.concatenate([token for each in docs for token in each])
    assert recipe.emit is not None
    emit = recipe.emit.model_copy(update={"token_budget": 2 * len(flat)})
    manifest = emit_manifest(catalog, Mixture(weights={"web": 1, "a": 0}), emit=emit, directory=recipe.paths.manifest.root)
    assert manifest.num_tokens == 2 * len(flat) and manifest.dtype == "<u4"
    seen = np.concatenate([item["tokens"][item["labels"] != IGNORED_LABEL] for item in ManifestDataset(manifest.directory)])
    # Every token is read twice but the very last, which has no next one to predict.
    counts = np.bincount(seen, minlength=EOS + 1)
    expected = 2 * np.bincount(flat[:-1], minlength=EOS + 1)
    last_of_shard = flat[-1]
    assert counts.sum() == expected.sum() and last_of_shard == EOS
    np.testing.assert_array_equal(counts, expected)
    (pool,) = pools_of(manifest)
    assert [Path(part.path).name for part in whole_files(pool, block_tokens=BLOCK)] == ["web0.bin", "web1.bin"]
    assert not whole_files(dataclasses.replace(pool, parts=pool.parts[1:]), block_tokens=BLOCK)
    parts = np.concatenate([read_part(manifest, part, root=manifest.root_path).tokens_T for part in pool.parts])
    assert len(parts) == len(flat) and np.array_equal(np.sort(parts), np.sort(flat))


def test_the_same_tokens_in_two_formats_give_the_same_sequences_and_manifest(tmp_path):
    docs, manifests, items = documents(3, 300), [], []
    for name, write in (("megatron", megatron), ("olmo", olmo)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.jsonl").write_bytes(json_lines(texts("a", 80)))
        recipe = recipe_of(folder, {"web": {"tokens": write(folder, f"some {name}", docs)}, "a": {"files": "a.jsonl"}})
        manifest = emit_evenly(recipe, run(recipe).catalog)
        manifests.append([dataclasses.replace(part, path="", sha256="") for part in manifest.parts])
        items.append(np.stack([item["labels"].numpy() for item in ManifestDataset(manifest.directory, sequence_length=32)]))
    assert manifests[0] == manifests[1]
    np.testing.assert_array_equal(*items)


def test_what_is_held_out_is_evenly_spread_and_read_by_nobody_else(tmp_path):
    docs = [np.append(np.full(99, number % 200), EOS) for number in range(2000)]
    recipe = recipe_of(tmp_path, {"web": {"tokens": megatron(tmp_path, "web", docs)}})
    catalog = run(recipe).catalog
    flat, is_valid = np.concatenate(docs), np.zeros(200_000, np.int64)
    labelled = np.zeros(200_000, np.int64)
    for row in catalog.rows:
        if row.storage == "flat":
            is_valid[row.first_token : row.first_token + row.num_tokens] += 1 if row.split == "train" else 10
            labelled[row.first_token + 1 : row.first_token + 1 + row.num_labels] += 1 if row.split == "train" else 10
    num_blocks = (len(flat) - 1) // BLOCK
    assert set(is_valid[: num_blocks * BLOCK]) == {1, 10}  # each token in one split, once
    assert round((is_valid == 10).sum() / BLOCK) == round(num_blocks * 0.1)
    # A label is of the split of the token before it and its own: no token of one split is predicted in the other.
    both = (labelled[1:] > 0) & (is_valid[1:] > 0)
    assert (labelled[1:][both] == is_valid[1:][both]).all()
    quarters = np.array_split(is_valid == 10, 4)
    assert all(0.07 < quarter.mean() < 0.13 for quarter in quarters)


def test_masks_are_read_beside_the_tokens_and_examples_begin_after_their_ends(tmp_path):
    docs = documents(5, 80)
    flat = np.concatenate(docs)
    loss = np.random.default_rng(0).random(len(flat)) < 0.4
    recipe = recipe_of(tmp_path, {"web": {"tokens": datatrove(tmp_path, "web", docs, loss=loss)}}, target=None)
    result = run(recipe)
    (said,) = [warning for warning in result.warnings if "may cut one" in warning]
    assert said.startswith("sources.web.tokens.datatrove:")
    assert result.catalog.info.example_tokens == 32
    manifest = emit_evenly(recipe, result.catalog)
    for part in manifest.parts:
        tokens = read_part(manifest, part, root=manifest.root_path)
        if part.storage == "flat":
            first = part.first_token + part.block_start * BLOCK
            np.testing.assert_array_equal(tokens.tokens_T, flat[first : first + part.num_tokens])
            np.testing.assert_array_equal(tokens.carries_loss_T, loss[first : first + part.num_tokens])
        assert tokens.starts_T is not None
        np.testing.assert_array_equal(tokens.starts_T[1:] == 1, tokens.tokens_T[:-1] == EOS)
    for row in result.catalog.rows:
        if row.storage == "flat":
            assert row.num_loss_tokens == loss[row.first_token + 1 : row.first_token + 1 + row.num_labels].sum()
    item = next(iter(ManifestDataset(manifest.directory, sequence_length=32)))
    after_end = np.flatnonzero(item["tokens"][:-1].numpy() == EOS) + 1
    assert (item["positions"].numpy()[after_end] == 0).all()
    assert verify(recipe.paths.root, quiet=True).ok


def test_shards_of_another_workdir_are_used_with_its_split(tmp_path):
    other, here = tmp_path / "other", tmp_path / "here"
    for folder in (other, here):
        folder.mkdir()
    (other / "a.jsonl").write_bytes(json_lines(texts("a", 200)))
    theirs = run(recipe_of(other, {"a": {"files": "a.jsonl"}})).catalog
    recipe = recipe_of(here, {"b": {"tokens": {"fastmix": "../other/run", "source": "a"}}})
    catalog = run(recipe).catalog
    for split in ("train", "valid"):
        np.testing.assert_array_equal(stream(catalog, "b", split), stream(theirs, "a", split))
    assert own_files(here) == [] and verify(recipe.paths.root, quiet=True).ok
    with pytest.raises(InputError, match=r"blocks of 64 tokens, here they have 128; give shards: \{block_tokens: 64\}"):
        plan_preprocess(load_recipe(here / "recipe.yaml", ["shards.block_tokens=128"]))
    with pytest.raises(InputError, match=r"has no source 'c'; name one with source; it has a"):
        plan_preprocess(load_recipe(here / "recipe.yaml", ["sources.b.tokens.source=c"]))


def test_an_export_that_cannot_name_foreign_files_copies_their_blocks(tmp_path):
    import webdataset

    docs = documents(7, 100)
    recipe = recipe_of(tmp_path, {"web": {"tokens": megatron(tmp_path, "web", docs)}})
    manifest = emit_evenly(recipe, run(recipe).catalog)
    folder = tmp_path / "export"
    export(manifest.directory, to="webdataset", directory=folder)
    index = json.loads((folder / "index.json").read_text())
    read = {
        shard["url"]: [sample["tokens.npy"] for sample in webdataset.WebDataset(shard["url"], shardshuffle=False).decode()]
        for shard in index["shardlist"]
    }
    for part, shard in zip(manifest.parts, index["shardlist"], strict=True):
        stored = manifest.open(part, root=manifest.root_path).tokens_NT[part.block_start : part.block_stop, :]
        np.testing.assert_array_equal(np.stack(read[shard["url"]]), stored)


def test_materialized_imports_are_read_as_the_manifest_is(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts("a", 80)))
    tokens = {
        "flat": megatron(tmp_path, "flat", documents(3, 80), dtype="int32"),
        "kept": mds(tmp_path, "kept", documents(4, 80)),
    }
    sources = {name: {"tokens": each} for name, each in tokens.items()} | {"a": {"files": "a.jsonl"}}
    recipe = recipe_of(tmp_path, sources)
    manifest = emit_evenly(recipe, run(recipe).catalog)
    export(manifest.directory, to="shards", directory=tmp_path / "out", sequence_length=32, max_file_bytes=60_000)
    items = zip(ManifestDataset(tmp_path / "out"), ManifestDataset(manifest.directory, sequence_length=32), strict=True)
    assert all(a[name].equal(b[name]) for a, b in items for name in b) and verify(tmp_path / "out").ok
    # The file of another tool may go: what was written stands alone.
    assert not any(part.storage != "shard" for part in load_manifest(tmp_path / "out").parts)


def test_an_export_to_flat_files_has_documents_begin_where_ends_or_files_do(tmp_path):
    for number in range(2):
        megatron(tmp_path, f"web{number}", documents(number, 60))
    shards = {"block_tokens": BLOCK, "valid_fraction": 0, "max_shard_bytes": 12_000}
    recipe = recipe_of(
        tmp_path, {"web": {"tokens": {"megatron": "web*"}}}, shards=shards, target=None, emit={"token_budget": "15k"}
    )
    catalog = run(recipe).catalog
    assert recipe.emit is not None
    emit = recipe.emit.model_copy(update={"token_budget": catalog.num_tokens("web")})
    manifest = emit_manifest(catalog, Mixture(weights={"web": 1}), emit=emit, directory=recipe.paths.manifest.root)
    export(manifest.directory, to="olmo", directory=tmp_path / "export")
    (path,) = (tmp_path / "export").rglob("*.npy")
    tokens = np.fromfile(path, "<u2")
    np.testing.assert_array_equal(tokens, stream(catalog, "web", "train"))
    table = gzip.decompress(path.with_suffix("").with_suffix(".csv.gz").read_bytes()).decode().splitlines()
    firsts = {0} | {int(at) + 1 for at in np.flatnonzero(tokens[:-1] == EOS)}
    kinds = [(part.path, part.storage) for part in manifest.parts]
    ends = np.cumsum([part.num_tokens for part in manifest.parts])
    firsts |= {int(end) for end, kind, after in zip(ends[:-1], kinds, kinds[1:], strict=False) if kind != after}
    assert {int(row.split(",")[0]) for row in table} == firsts


def test_a_file_that_changed_is_noticed_by_all_that_use_it(tmp_path):
    recipe = recipe_of(tmp_path, {"web": {"tokens": megatron(tmp_path, "web", documents(9, 100))}})
    manifest = emit_evenly(recipe, run(recipe).catalog)
    path = tmp_path / "web.bin"
    os.utime(path, ns=(1, 1))
    assert "nothing to do" in run(recipe).message  # a copy has another time and the old bytes
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"a\0b\0")
    part = next(part for part in manifest.parts if part.storage == "flat")
    with pytest.raises(CorruptArtefactError, match="changed since the manifest was made"):
        check_unchanged(part, root=manifest.root_path)
    (problem,) = verify(recipe.paths.root, quiet=True).problems
    assert "a sample of its bytes differs; put it back" in str(problem)
    with pytest.raises(MismatchError, match=r"web.bin: changed since the shards in .* were made from it; .*--replace"):
        run(recipe)
    path.write_bytes(path.read_bytes()[: BLOCK * 4])
    with pytest.raises(CorruptArtefactError, match="is cut short"):
        list(ManifestDataset(manifest.directory))


def _spoil_idx(change: str):
    def spoil(folder: Path) -> None:
        path = folder / "web.idx"
        content = bytearray(path.read_bytes())
        if change == "magic":
            content[:3] = b"PK\3"
        elif change == "type":
            content[17] = 4
        elif change == "short":
            content = content[:-8]
        elif change == "gap":
            content[34 + 4 * 100 + 8 * 5] ^= 2
        path.write_bytes(content)

    return spoil


def _tokens(write, *arguments: Any, **keywords: Any):
    """Writes other tokens than those that were there."""
    return lambda folder: write(folder, *arguments, **keywords)


@pytest.mark.parametrize(
    ("spoil", "tokens", "said"),
    [
        (_spoil_idx("magic"), {}, r"web.idx is not an index of Megatron: it does not begin with MMIDIDX; write both again"),
        (_spoil_idx("type"), {}, r"sequence 1 of web.idx begins at byte"),
        (_spoil_idx("short"), {}, r"web.idx has \d+ bytes, and for its 100 sequences and 101 ends it takes \d+"),
        (_spoil_idx("gap"), {}, r"sequence 5 of web.idx begins at byte \d+, and the one before ends at \d+; .*merge_datasets.py"),
        (lambda folder: os.truncate(folder / "web.bin", 400), {}, r"web.idx speaks of \d+ bytes of tokens, and web.bin has 400"),
        (lambda folder: (folder / "web.idx").unlink(), {}, r"web.bin has no web.idx beside it"),
        (None, {"megatron": "wep"}, r"no file matches 'wep.bin'; the nearest there is web.bin"),
        (_tokens(megatron, "web", [np.full(500, 300)]), {}, r"token 0 of web.bin is 300, and the tokenizer's vocabulary has 257"),
        (_tokens(megatron, "web", documents(0, 9), dtype="int64"), {}, r"tokens of web.bin are int64, .*write them as uint16"),
        (_tokens(megatron, "web", [np.full(20, 97)]), {}, r"has 20 tokens, less than one block of 64 and its last label"),
        (_tokens(olmo, "x", documents(0, 9), dtype="uint32"), {"olmo": "x.npy"}, "every other token .*give dtype: uint32"),
        (lambda folder: np.save(folder / "x.npy", np.zeros(300, "<u2")), {"olmo": "x.npy"}, "header of NumPy.*tofile"),
        (_tokens(datatrove, "x", documents(0, 9), loss=np.ones(3)), {"datatrove": "x.ds"}, r"x.ds.loss has 3 bytes"),
        (
            _tokens(datatrove, "x", [np.full(300, 97)], loss=np.full(300, 7)),
            {"datatrove": "x.ds"},
            "x.ds.loss has a 7, and a mask is of 0",
        ),
        (_tokens(mds, "m", documents(0, 9), encoding="ndarray:float32"), {"mds": "m"}, "column tokens of m is ndarray:float32"),
    ],
)
def test_files_that_cannot_be_what_they_are_said_to_be_are_one_line_and_nothing_is_written(tmp_path, spoil, tokens, said):
    whole = megatron(tmp_path, "web", documents(0, 100))
    if spoil is not None:
        spoil(tmp_path)
    recipe = recipe_of(tmp_path, {"web": {"tokens": tokens or whole}})
    with pytest.raises(FastmixError, match=said) as caught:
        run(recipe)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("sources.web.tokens.")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"tokens": {"megatron": "web"}, "text": "body"}, "text: with tokens there is no text to read; leave it out"),
        ({"tokens": {"megatron": "web", "olmo": "x"}}, "give exactly one of megatron, olmo, datatrove, mds, fastmix"),
        ({"tokens": {"megatron": "web", "masks": "x"}}, "masks is for olmo; leave it out"),
        ({"tokens": {"megatron": "web"}, "valid_files": "x"}, "valid_files are text; give valid_tokens"),
        ({"files": "web", "valid_tokens": {"megatron": "web"}}, "valid_tokens belong to tokens; give valid_files"),
    ],
)
def test_a_recipe_that_mixes_text_and_tokens_in_one_source_is_refused(tmp_path, source, said):
    with pytest.raises(RecipeError, match=said):
        recipe_of(tmp_path, {"web": source}, target=None)
    with pytest.raises(RecipeError, match=r"sources.web.tokens were made with a tokenizer that is there"):
        recipe_of(tmp_path, {"web": {"tokens": {"megatron": "web"}}}, tokenizer={"train": {"vocab_size": 300}})
