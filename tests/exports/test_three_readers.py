"""A model is trained alike by whichever reader has the manifest: fastmix's loader, `datasets`, or webdataset."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from fastmix_data.loader import IGNORED_LABEL, ManifestDataset, ManifestLoader
from fastmix_data.manifest.manifest import Manifest, load_manifest
from fastmix_data.manifest.parts import Part
from pipelines.export.run import export

BATCH = 8
WIDTH = 16


class Batch(NamedTuple):
    """What a step learns from; all of shape (B, T)."""

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor


def _of_fastmix(manifest: Manifest) -> Iterator[Batch]:
    for item in ManifestLoader(ManifestDataset(manifest.path, batch_size=BATCH)):
        yield Batch(item["tokens"], item["labels"], item["positions"])


def _of_datasets(folder: Path) -> Iterator[Batch]:
    """By the script of the export, whose items are a token longer than a block, as models that shift labels themselves want them."""
    for item in DataLoader(_module(folder / "interleave.py").training_stream(), batch_size=BATCH):
        positions = item.get("position_ids", torch.arange(item["input_ids"].shape[1]).expand_as(item["input_ids"]))
        yield Batch(item["input_ids"][:, :-1], item["labels"][:, 1:], positions[:, :-1])


def _of_webdataset(folder: Path) -> Iterator[Batch]:
    """The shards from first to last; where nothing has a mask, the manifest beside them says how many labels a sequence has."""
    num_labels = chain.from_iterable(_labels_of(part, load_manifest(folder).block_tokens) for part in load_manifest(folder).parts)
    urls = [str(path) for path in sorted((folder / "shards").glob("*.tar"))]
    rows = []
    for sample, count in zip(wds.WebDataset(urls, shardshuffle=False).decode(), num_labels, strict=True):
        tokens_T = sample["tokens.npy"].astype(np.int64)
        counting_T = np.arange(len(tokens_T))
        begins_T = sample.get("starts.npy", np.zeros_like(counting_T)) != 0
        positions_T = counting_T - np.maximum.accumulate(np.where(begins_T, counting_T, 0))
        carries_T = sample["loss_mask.npy"] != 0 if "loss_mask.npy" in sample else counting_T <= count
        labels_T = np.where(carries_T, tokens_T, IGNORED_LABEL)
        rows.append((tokens_T[:-1], labels_T[1:], positions_T[:-1]))
    for start in range(0, len(rows), BATCH):
        yield Batch(*(torch.from_numpy(np.stack(column)) for column in zip(*rows[start : start + BATCH], strict=True)))


def _labels_of(part: Part, block: int) -> list[int]:
    """Of each sequence of a part, of which only the last can be short."""
    before = part.num_blocks - 1
    return [block] * before + [part.num_labels - before * block]


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("interleave", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _losses(batches: list[Batch], *, vocab_size: int) -> list[float]:
    """Of every step of a model that sees tokens and positions."""
    torch.manual_seed(0)
    token, position = torch.nn.Embedding(vocab_size, WIDTH), torch.nn.Embedding(batches[0].tokens.shape[1], WIDTH)
    model = torch.nn.ModuleList([token, position, head := torch.nn.Linear(WIDTH, vocab_size)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for batch in batches:
        logits_BTV = head(torch.tanh(token(batch.tokens) + position(batch.positions)))
        loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED_LABEL)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("which", ["plain", "masked"])
def test_three_readers_train_a_model_on_the_same_tokens(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    manifest: Manifest = request.getfixturevalue(f"{which}_manifest")
    export(manifest.path, to="huggingface", directory=tmp_path / "hf", max_file_bytes=2000)
    export(manifest.path, to="shards", directory=tmp_path / "shards", max_file_bytes=40_000)
    ours = list(_of_fastmix(manifest))
    readers = {"datasets": list(_of_datasets(tmp_path / "hf")), "webdataset": list(_of_webdataset(tmp_path / "shards"))}
    labels = torch.cat([batch.labels for batch in ours])
    assert len(ours) > 10 and (labels != IGNORED_LABEL).sum() < labels.numel()
    vocab_size = 1 + max(int(torch.cat([batch.tokens for batch in ours]).max()), int(labels.max()))
    losses = _losses(ours, vocab_size=vocab_size)
    assert len(set(losses)) == len(losses)  # every step learns
    for name, batches in readers.items():
        for found, expected in zip(batches, ours, strict=True):
            assert all(map(torch.equal, found, expected)), name
        assert _losses(batches, vocab_size=vocab_size) == losses, name
