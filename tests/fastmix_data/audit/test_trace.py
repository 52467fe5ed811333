"""Documents of tokens that were there already: named by what their own files say, and theirs to the token."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmix_data.audit.inspection import inspect
from fastmix_data.audit.trace import TracedStep, trace
from fastmix_data.loader import ManifestDataset
from fastmix_data.machine import Workers
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.manifest.manifest import Manifest
from fastmix_data.recipe.emit import EmitSection
from fastmix_data.recipe.load import load_recipe
from fastmix_data.results.mixture import Mixture
from fastmix_data.tokens.tokenizer import load_tokenizer
from fastmix_data.workdir import Workdir
from pipelines.preprocess.plan import plan_preprocess
from pipelines.preprocess.run import preprocess
from tests.written_tokens import EOS, FORMATS, documents

BLOCK, LENGTH = 64, 32
PATTERNS = {"megatron": "web?", "olmo": "web?.npy", "datatrove": "web?.ds", "mds": "web?"}
Named = dict[tuple[str, str], np.ndarray]


def _manifest(folder: Path, sources: dict[str, Any]) -> Manifest:
    """Two epochs of everything."""
    content = {
        "tokenizer": {"bytes": True},
        "sources": sources,
        "shards": {"block_tokens": BLOCK, "valid_fraction": 0.05, "max_shard_bytes": 12_000},
    }
    (folder / "recipe.yaml").write_text(json.dumps(content))
    recipe = load_recipe(folder / "recipe.yaml")
    catalog = preprocess(plan_preprocess(recipe), workers=Workers(quiet=True)).catalog
    sizes = {name: catalog.num_tokens(name) for name in catalog.sources}
    mixture = Mixture(weights={name: size / sum(sizes.values()) for name, size in sizes.items()})
    emit = EmitSection(token_budget=2 * sum(sizes.values()), max_epochs=3)
    return emit_manifest(catalog, mixture, emit=emit, directory=recipe.paths.manifest.root)


def _write(folder: Path, name: str, *, num_files: int = 3) -> Named:
    """Files of a format, and by file and locator the tokens of each document."""
    named: Named = {}
    for number in range(num_files):
        of_file = documents(number, 40 + 7 * number)
        FORMATS[name](folder, f"web{number}", of_file)
        if name == "mds":
            halves = of_file[: len(of_file) // 2], of_file[len(of_file) // 2 :]
            for shard, half in enumerate(halves):
                path = str(folder / f"web{number}" / f"shard.{shard:05d}.mds")
                named |= {(path, f"sample {n}"): document for n, document in enumerate(half)}
            continue
        path = str(folder / PATTERNS[name].replace("?", str(number))) + (".bin" if name == "megatron" else "")
        named |= {(path, f"document {n}"): document for n, document in enumerate(of_file)}
    return named


def _by_first_token(named: Named) -> Named:
    """The same documents, as their place in the file names them."""
    found: Named = {}
    place: dict[str, int] = {}
    for (path, _), document in named.items():
        found[path, f"token {place.get(path, 0)}"] = document
        place[path] = place.get(path, 0) + len(document)
    return found


def _check(manifest: Manifest, named: Named, *, unknown: int = 0) -> set[tuple[str, str]]:
    """Every sequence is, from its first token to its last, pieces of the documents that it is traced to; which were named."""
    items = list(ManifestDataset(manifest.directory, sequence_length=LENGTH))
    sequences = trace(manifest, TracedStep(0, len(items), LENGTH))["sequences"]
    seen, num_unknown = set(), 0
    for item, sequence in zip(items, sequences, strict=True):
        tokens, found = item["tokens"].numpy(), sequence["documents"]
        if found[0]["file"] == "(not recorded)":
            num_unknown += 1
            continue
        pieces = np.split(tokens, np.cumsum([document["tokens"] for document in found]))
        padding = pieces.pop()  # after the last token of a source alone
        assert (padding == EOS).all() and (not len(padding) or item["labels"][-1] == -100)
        for number, (piece, document) in enumerate(zip(pieces, found, strict=True)):
            whole = named[document["file"], document["locator"]]
            places = [n for n in range(len(whole) - len(piece) + 1) if np.array_equal(whole[n : n + len(piece)], piece)]
            assert places
            seen.add((document["file"], document["locator"]))
            # Between two others there is all of it, but where the ends of two files meet.
            joined = sequence["shard"].endswith(".tar")
            assert joined or not number or 0 in places
            assert number == len(pieces) - 1 or len(whole) - len(piece) in places
    assert (num_unknown > 0) == (unknown > 0)
    return seen


@pytest.mark.parametrize("name", FORMATS)
def test_documents_of_foreign_files_are_named_as_their_own_index_numbers_them(tmp_path: Path, name: str) -> None:
    named = _write(tmp_path, name)
    tokens = {name: PATTERNS[name]} | ({"dtype": "uint16"} if name == "olmo" else {})
    seen = _check(_manifest(tmp_path, {"web": {"tokens": tokens}}), named)
    assert len(seen) > 0.9 * len(named)  # the others are held out


def test_without_an_index_documents_are_named_by_the_token_after_the_last_end_of_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = _by_first_token(_write(tmp_path, "olmo"))
    for path in tmp_path.glob("*.csv.gz"):
        path.unlink()
    monkeypatch.setattr("fastmix_data.shards.foreign_documents._LOOKED_AT_ONCE", 50)  # shorter than many documents
    seen = _check(_manifest(tmp_path, {"web": {"tokens": {"olmo": "web?.npy", "dtype": "uint16"}}}), named)
    assert len(seen) > 0.9 * len(named)


def test_documents_of_borrowed_shards_are_those_of_the_workdir_that_made_them(tmp_path: Path) -> None:
    other, here = tmp_path / "other", tmp_path / "here"
    for folder in (other, here):
        folder.mkdir()
    named = _write(other, "megatron")
    texts = [f"{number} " + "text " * (number % 60) for number in range(90)]
    (other / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    lent = {"web": {"tokens": {"megatron": "web?"}}, "a": {"files": "a.jsonl"}}
    tokenizer = load_tokenizer(Workdir(_manifest(other, lent).root_path).tokenizer)
    for number, text in enumerate(texts, 1):
        named["a.jsonl", f"line {number}"] = np.array([*tokenizer.encode(text, add_special_tokens=False).ids, EOS])
    borrowed = {f"my-{name}": {"tokens": {"fastmix": "../other/run", "source": name}} for name in lent}
    manifest = _manifest(here, borrowed)
    seen = _check(manifest, named)
    assert len(seen) > 0.9 * len(named) and {Path(file).name for file, _ in seen} == {
        "a.jsonl",
        *(f"web{n}.bin" for n in range(3)),
    }
    (other / "run" / "catalog.parquet").unlink()
    _check(manifest, named, unknown=1)


def test_ends_of_files_of_which_one_has_no_block_are_not_guessed(tmp_path: Path) -> None:
    named = _write(tmp_path, "datatrove", num_files=2)
    FORMATS["datatrove"](tmp_path, "web2", [np.append(np.arange(97, 117), EOS)])
    manifest = _manifest(tmp_path, {"web": {"tokens": {"datatrove": "web?.ds"}}})
    _check(manifest, named, unknown=1)


def test_inspect_names_the_files_whose_ends_a_shard_holds(tmp_path: Path) -> None:
    _write(tmp_path, "megatron")
    manifest = _manifest(tmp_path, {"web": {"tokens": {"megatron": "web?"}}})
    (shard,) = manifest.root_path.rglob("*.tar")
    found = inspect(shard, block=0)["block"]["documents"]
    assert Path(found[0]["file"]).name == "web0.bin" and found[0]["num_tokens"] is None
    assert found[0]["first"] == 0 and all(b["first"] == a["last"] + 1 for a, b in pairwise(found))
