"""The flow over tokens that are there already: the same whatever their format, and the file's own tokens in the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from installed_command import WORDS, fastmix, read_recipe, write_corpus, write_recipe
from written_tokens import EOS, datatrove, megatron

from fastmix_data.loader import ManifestDataset
from fastmix_data.manifest.manifest import Manifest, load_manifest
from fastmix_data.results.mixture import load_mixture
from fastmix_data.workdir import Workdir


def prose_as_bytes(folder: Path) -> list[np.ndarray]:
    lines = (folder / "prose.jsonl").read_text().splitlines()
    return [np.append(np.frombuffer(json.loads(line)["text"].encode(), np.uint8).astype(np.int64), EOS) for line in lines]


def import_prose(folder: Path, tokens: dict[str, Any]) -> None:
    recipe = read_recipe(folder) | {"tokenizer": {"bytes": True}, "sources": {name: {"files": f"{name}.jsonl"} for name in WORDS}}
    recipe["sources"]["prose"] = {"tokens": tokens}
    recipe["search"] |= {"method": "paper"}  # without trials, which are about other things
    write_recipe(folder, recipe)


def ran(folder: Path, write: Any) -> tuple[dict[str, float], Manifest]:
    write_corpus(folder)
    import_prose(folder, write(folder, "text_document", prose_as_bytes(folder)))
    fastmix("run", "recipe.yaml", "--workers", 1, cwd=folder)
    paths = Workdir(folder / "run")
    return load_mixture(paths.search.mixture).weights, load_manifest(paths.manifest.root)


def test_a_run_gives_the_files_tokens_and_does_not_depend_on_their_format(tmp_path: Path) -> None:
    results = []
    for name, write in (("one", megatron), ("two", datatrove)):
        (tmp_path / name).mkdir()
        results.append(ran(tmp_path / name, write))
    assert results[0][0] == results[1][0] and max(results[0][0], key=results[0][0].__getitem__) == "prose"
    flat, manifest = np.concatenate(prose_as_bytes(tmp_path / "one")), results[0][1]
    index = [source.name for source in manifest.sources].index("prose")
    in_file = {tuple(flat[start : start + 65].tolist()) for start in range(0, len(flat) - 64, 64)}
    found, others = (ManifestDataset(manifest.directory, sequence_length=64) for _, manifest in results)
    num_read = 0
    for item, other in zip(found, others, strict=True):
        assert (item["labels"] == other["labels"]).all()
        if item["source"] == index and (item["labels"] != -100).all():
            assert (*item["tokens"].tolist(), int(item["labels"][-1])) in in_file
            num_read += 1
    assert num_read > 100
    shown = fastmix("inspect", "one/run/catalog.parquet", cwd=tmp_path).stdout
    assert "files read where they lie: prose train 1, prose valid 1" in shown
    assert "imported file" in fastmix("verify", "one/run", cwd=tmp_path).stdout


def test_an_index_that_does_not_fit_its_tokens_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    import_prose(tmp_path, megatron(tmp_path, "text_document", prose_as_bytes(tmp_path)))
    with (tmp_path / "text_document.bin").open("ab") as file:
        file.write(b"a\0")
    finished = fastmix("run", "recipe.yaml", cwd=tmp_path, code=2)
    (line,) = finished.stderr.strip().splitlines()
    assert "sources.prose.tokens.megatron: text_document.idx speaks of" in line and "give the two that belong together" in line
    assert not (tmp_path / "run").exists()
