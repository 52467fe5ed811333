"""Every figure of a manifest computed again from the catalog, `manifest.json`, `parts.parquet` and the shards, without our code.

What is served in which order is not its business: the tests ask the loader that, and hand what it reads to `Served`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq


def _hash(content: Any) -> str:
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Audit:
    """One manifest, opened as plain JSON and Parquet.

    Args:
        emit: the recipe's emit section as nested plain values, of which the hash is recorded; not checked when None.
        served_before: tokens of each source that manifests before this one served, by whoever counted them.
    """

    def __init__(
        self, directory: Path, *, emit: dict[str, Any] | None = None, served_before: dict[str, int] | None = None
    ) -> None:
        self.content = json.loads((directory / "manifest.json").read_text())
        self.parts = pq.read_table(directory / "parts.parquet").to_pylist()
        self.root = directory / self.content["root"]
        table = pq.read_table(self.root / "catalog.parquet")
        self.info = json.loads(table.schema.metadata[b"fastmix"])
        self.rows = table.to_pylist()
        self.train = {row["path"]: row for row in self.rows if row["split"] == "train"}
        self.emit, self.before, self.directory = emit, served_before or {}, directory
        self.problems: list[str] = []

    def run(self) -> list[str]:
        """All that is wrong."""
        self._hashes()
        self._parts()
        self._pools()
        self._phases()
        self._sources()
        return self.problems

    def _expect(self, what: str, found: Any, expected: Any) -> None:
        same = abs(found - expected) < 1e-9 if isinstance(expected, float) else found == expected
        if not same:
            self.problems.append(f"{what}: {found}, computed {expected}")

    def _hashes(self) -> None:
        content = self.content
        self._expect("sha256", content["sha256"], _hash({k: v for k, v in content.items() if k != "sha256"}))
        self._expect("parts", content["parts"]["sha256"], _file_hash(self.directory / content["parts"]["path"]))
        self._expect("rows", content["parts"]["num_rows"], len(self.parts))
        shared = [self.info[name] for name in ("block_tokens", "vocab_size", "eos_id", "tokenizer_sha256", "sources")]
        shards = [[row[name] for name in ("source", "split", "path", "sha256")] for row in self.rows]
        self._expect("catalog", content["catalog_hash"], _hash([shared, shards]))
        for name in ("block_tokens", "vocab_size", "eos_id", "tokenizer_sha256"):
            self._expect(name, content[name], self.info[name])
        if self.emit is not None:
            self._expect("recipe", content["recipe_hash"], _hash(self.emit))
            if content["after"] is None:
                self._expect("mixture", content["mixture_hash"], _hash([phase["weights"] for phase in content["phases"]]))
                self._expect("budget", content["token_budget"], self.emit["token_budget"])

    def _parts(self) -> None:
        size = self.info["block_tokens"]
        for part in self.parts:
            row = self.train[part["path"]]
            for name in ("source", "sha256", "bytes", "dtype", "has_mask"):
                self._expect(f"{part['path']} {name}", part[name], row[name])
            self._expect("shard_blocks", part["shard_blocks"], row["num_blocks"])
            self._expect("file", _file_hash(self.root / part["path"]), row["sha256"])
            blocks = range(part["block_start"], part["block_stop"])
            for counted in ("num_tokens", "num_labels"):
                total = sum(max(0, min(size, row[counted] - block * size)) for block in blocks)
                self._expect(f"{part['path']} {counted}", part[counted], total)
        drawn = {
            part["path"]
            for part in self.parts
            if self.content["pools"][part["pool"]]["skip"] != self.content["pools"][part["pool"]]["stop"]
        }
        self._expect("num_shards", self.content["num_shards"], len(drawn))
        masked = any(part["has_mask"] for part in self.parts)
        self._expect("example_tokens", self.content["example_tokens"], self.info["example_tokens"] if masked else None)

    def _pools(self) -> None:
        numbers = [part["pool"] for part in self.parts]
        self._expect("parts are sorted by pool", numbers, sorted(numbers))
        for number, pool in enumerate(self.content["pools"]):
            parts = [part for part in self.parts if part["pool"] == number]
            blocks = Counter((part["path"], block) for part in parts for block in range(part["block_start"], part["block_stop"]))
            self._expect(f"pool {number} has a block twice", [block for block, times in blocks.items() if times > 1], [])
            self._expect(f"pool {number} source", {part["source"] for part in parts}, {pool["source"]})
            self._expect(f"pool {number} repeats", {part["repeats"] for part in parts}, {pool["repeats"]})
            in_passes = pool["repeats"] * sum(part["num_tokens"] for part in parts)
            if pool["stop"] == pool["skip"]:
                self._expect(f"pool {number}", pool["num_tokens"], 0)
            elif pool["skip"] == 0 and pool["stop"] is None:
                self._expect(f"pool {number}", pool["num_tokens"], in_passes)
            elif not 0 < pool["num_tokens"] < in_passes:
                self.problems.append(f"pool {number}: {pool['num_tokens']} of {in_passes}")

    def _phases(self) -> None:
        content, size = self.content, self.info["block_tokens"]
        totals: Counter[tuple[int, str]] = Counter()
        for pool in content["pools"]:
            totals[pool["phase"], pool["source"]] += pool["num_tokens"]
        for number, phase in enumerate(content["phases"]):
            self._expect("phase budget", sum(phase["asked"].values()), phase["token_budget"])
            self._expect("phase tokens", phase["num_tokens"], sum(phase["tokens"].values()))
            self._expect("weights", sum(phase["weights"].values()), 1.0)
            for name, tokens in phase["tokens"].items():
                self._expect(f"phase {number} {name}", tokens, totals[number, name])
                self._expect(f"phase {number} share", phase["shares"][name], tokens / max(phase["num_tokens"], 1))
                if abs(tokens - phase["asked"][name]) > size or (tokens and not phase["weights"][name]):
                    self.problems.append(f"phase {number}: {name} asked {phase['asked'][name]}, given {tokens}")
            # Water-filling: sources that give more than their share do so alike, and nobody gets less who is not at its cap.
            levels = {name: Fraction(phase["asked"][name]) / Fraction(w) for name, w in phase["weights"].items() if w}
            token = {name: 1 / Fraction(w) for name, w in phase["weights"].items() if w}  # what rounding to one can change
            level = max(found - token[name] for name, found in levels.items())
            short = {name for name, found in levels.items() if found + token[name] < level}
            for name in short:
                source = next(source for source in content["sources"] if source["name"] == name)
                if not source["capped"] or self._room(source) >= size:
                    self.problems.append(f"phase {number}: {name} is below its share without a cap")
        self._expect("budget of phases", sum(phase["token_budget"] for phase in content["phases"]), content["token_budget"])
        if abs(content["num_tokens"] - content["token_budget"]) > size:
            self.problems.append(f"{content['num_tokens']} tokens for {content['token_budget']}")

    def _room(self, source: dict[str, Any]) -> int:
        """Tokens until a source's cap, at the end of the manifest."""
        most = int(Fraction(repr(source["max_epochs"])) * source["unique_tokens"])
        return most - source["tokens_before"] - source["num_tokens"]

    def _sources(self) -> None:
        content = self.content
        unique: defaultdict[str, int] = defaultdict(int)
        for row in self.train.values():
            unique[row["source"]] += row["num_tokens"]
        self._expect("names", [source["name"] for source in content["sources"]], self.info["sources"])
        self._expect("num_tokens", content["num_tokens"], sum(source["num_tokens"] for source in content["sources"]))
        for source in content["sources"]:
            name = source["name"]
            self._expect(f"{name} tokens", source["num_tokens"], sum(phase["tokens"][name] for phase in content["phases"]))
            self._expect(f"{name} unique", source["unique_tokens"], unique[name])
            self._expect(f"{name} before", source["tokens_before"], self.before.get(name, 0))
            self._expect(f"{name} share", source["share"], source["num_tokens"] / content["num_tokens"])
            epochs = (source["tokens_before"] + source["num_tokens"]) / max(unique[name], 1)
            self._expect(f"{name} epochs", source["epochs"], epochs)
            asked = sum(phase["weights"][name] * phase["token_budget"] for phase in content["phases"])
            self._expect(f"{name} weight", source["weight"], asked / content["token_budget"])
            if self._room(source) < 0:
                self.problems.append(f"{name} is beyond its cap")


class Served:
    """What a run has read so far, sequence by sequence: nothing may come again before everything else of its source came as often.

    Args:
        sequences: all there are of each source, by name.
    """

    def __init__(self, sequences: dict[str, set[Any]]) -> None:
        self.times = {name: Counter(dict.fromkeys(all_of_it, 0)) for name, all_of_it in sequences.items()}
        self.fewest = dict.fromkeys(sequences, 0)
        self.at_fewest = {name: len(all_of_it) for name, all_of_it in sequences.items()}

    def add(self, source: str, sequence: Any) -> None:
        """Take in one more."""
        times = self.times[source]
        assert times[sequence] == self.fewest[source], f"{source} {sequence} again, {self.at_fewest[source]} others wait"
        times[sequence] += 1
        self.at_fewest[source] -= 1
        if not self.at_fewest[source]:
            self.fewest[source] += 1
            self.at_fewest[source] = len(times)

    def grow(self, sequences: dict[str, set[Any]]) -> None:
        """Let there be more of some sources, or more sources: what is new comes before anything comes again."""
        for name, all_of_it in sequences.items():
            if name not in self.times:
                self.times[name], self.fewest[name], self.at_fewest[name] = Counter(), 0, 0
            # A source in the middle of an epoch lacks the new ones in it; at its end they are an epoch's rest.
            served = self.times[name]
            level = max(served.values(), default=0)
            for sequence in all_of_it - served.keys():
                served[sequence] = max(level - 1, 0)
            self.fewest[name] = min(served.values(), default=0)
            self.at_fewest[name] = sum(times == self.fewest[name] for times in served.values())


def sequences_of(root: Path, sequence_length: int) -> dict[str, set[Any]]:
    """All sequences with a label of each source's training shards, as (path, block, number within the block)."""
    table = pq.read_table(root / "catalog.parquet")
    size = json.loads(table.schema.metadata[b"fastmix"])["block_tokens"]
    found: dict[str, set[Any]] = {}
    for row in table.to_pylist():
        if row["split"] == "train":
            starts = np.arange(0, row["num_labels"], sequence_length)
            places = {(row["path"], start // size, start % size // sequence_length) for start in starts.tolist()}
            found.setdefault(row["source"], set()).update(places)
    return found
