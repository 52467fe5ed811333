import gzip
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from tokenizers import Tokenizer, models, normalizers

from fastmix_data.errors import FastmixError, InputError, MismatchError, RecipeError
from fastmix_data.recipe.file import load_recipe
from fastmix_data.shards.catalog import load_catalog
from fastmix_data.shards.strided import StridedShard
from fastmix_data.tokens.encoding import Encoder
from fastmix_data.tokens.tokenizer import byte_tokenizer, describe_tokenizer, train_tokenizer
from pipelines.preprocess.run import check_inputs, preprocess
from pipelines.preprocess.tokenizer import choose_backend

_PLAIN_WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "über", "1234", "streams", "return", "def", "self.x(", ")"]
WORDS = [*_PLAIN_WORDS, "value;\n", "🤦🏽\u200d♀️", "नमस्ते", "zwölf"]


def _texts(seed, count, length=120):
    rng = random.Random(seed)
    return [f"{seed}-{number} " + " ".join(rng.choices(WORDS, k=rng.randint(1, length))) for number in range(count)]


def _lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def _write_recipe(folder, **changes):
    """Every format: split by hash, with held-out files, and pairs as a target of their own."""
    import pyarrow as pa
    import zstandard

    (folder / "notes").mkdir(parents=True)
    (folder / "books.jsonl").write_bytes(_lines(_texts("books", 300)))
    (folder / "code.jsonl.zst").write_bytes(zstandard.compress(_lines(_texts("code", 200))))
    (folder / "code-valid.jsonl.gz").write_bytes(gzip.compress(_lines(_texts("code-valid", 40))))
    pq.write_table(pa.table({"body": _texts("tables", 250)}), folder / "tables.parquet", row_group_size=60)
    for number, text in enumerate(_texts("notes", 80)):
        (folder / "notes" / f"{number:03d}.txt").write_bytes(text.encode())
    pairs = [{"q": q, "a": a} for q, a in zip(_texts("q", 60, 20), _texts("a", 60, 20), strict=True)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    recipe = {
        "tokenizer": {"train": {"vocab_size": 400, "sample_bytes": 40_000}},
        "sources": {
            "books": {"files": "books.jsonl"},
            "code": {"files": "code.jsonl.zst", "valid_files": "code-valid.jsonl.gz"},
            "tables": {"files": "tables.parquet", "text": "body"},
            "notes": {"files": "notes"},
            "asks": {"files": "pairs.jsonl", "prompt": "q", "completion": "a"},
        },
        "shards": {"block_tokens": 64, "max_shard_bytes": 20_000, "max_partition_bytes": 20_000, "valid_fraction": 0.1},
        "target": {
            "sources": {"books": 1, "code": 2},
            "files": {"answers": {"files": "pairs.jsonl", "prompt": "q", "completion": "a", "separator": " -> "}},
        },
        "search": {"token_budget": "20k", "sequence_length": 16, "global_batch": 4},
        "emit": {"token_budget": "20k"},
    }
    del recipe["sources"]["asks"]
    for key, value in changes.items():
        recipe[key] = recipe.get(key, {}) | value if isinstance(value, dict) else value
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return folder / "recipe.yaml"


def _bytes_of(workdir):
    """Content of everything in a workdir but the receipts, which hold times of modification."""
    files = [path for path in sorted(workdir.rglob("*")) if path.is_file() and path.parent.name != "receipts"]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    recipe = load_recipe(_write_recipe(folder))
    return folder, recipe, preprocess(recipe, quiet=True)


@pytest.fixture
def small(tmp_path):
    """Two small sources of plain text and the recipe that reads them; a function writes the recipe with changes."""
    (tmp_path / "a.jsonl").write_bytes(_lines(_texts("a", 60)))
    (tmp_path / "b.jsonl").write_bytes(_lines(_texts("b", 60)))
    recipe = {
        "tokenizer": {"bytes": True},
        "sources": {"a": {"files": "a.jsonl"}, "b": {"files": "b.jsonl"}},
        "shards": {"block_tokens": 64, "valid_fraction": 0.2},
        "target": {"sources": {"a": 1}},
        "search": {"token_budget": "20k", "sequence_length": 16, "global_batch": 4},
        "emit": {"token_budget": "20k"},
    }

    def write(**changes):
        content = recipe | changes
        (tmp_path / "recipe.yaml").write_text(json.dumps(content), encoding="utf-8")
        return load_recipe(tmp_path / "recipe.yaml")

    return write


def _documents(workdir):
    rows = []
    for path in sorted((workdir / "documents").glob("*.parquet")):
        rows += pq.read_table(path).to_pylist()
    return rows


def _streams(catalog):
    """Tokens and mask of each (source, split, partition), shards put one after the other."""
    streams = {}
    for row in catalog.rows:
        shard = StridedShard(catalog.root / row.path, catalog.layout(row))
        mask = None if shard.loss_mask_NT is None else shard.loss_mask_NT[:, :-1].ravel()
        stream = streams.setdefault(row.path.rsplit("-", 1)[0], ([], [], {}))
        stream[2][row.path] = sum(map(len, stream[0]))
        stream[0].append(shard.tokens_NT[:, :-1].ravel())
        stream[1].append(mask)
    return {
        name: (np.concatenate(tokens), None if masks[0] is None else np.concatenate(masks), starts)
        for name, (tokens, masks, starts) in streams.items()
    }


def _text_at(folder, row):
    """The text(s) that a row of the documents table points at, read without fastmix."""
    import zstandard

    path = folder / row["file"]
    kind, _, number = row["locator"].partition(" ")
    if kind == "file":
        return (path.read_bytes().decode(),)
    if kind == "row":
        return (pq.read_table(path).column("body")[int(number)].as_py(),)
    content = path.read_bytes()
    if path.suffix == ".zst":
        content = zstandard.ZstdDecompressor().stream_reader(content).read()
    elif path.suffix == ".gz":
        content = gzip.decompress(content)
    line = content[int(number) :].split(b"\n")[0] if kind == "byte" else content.split(b"\n")[int(number) - 1]
    record = json.loads(line)
    return (record["text"],) if "text" in record else (record["q"] + " -> ", record["a"])


def test_every_document_can_be_joined_again_and_is_what_the_reference_encodes(done):
    folder, recipe, result = done
    reference = Tokenizer.from_file(str(recipe.paths.root / "tokenizer" / "tokenizer.json"))
    streams, eos = _streams(result.catalog), result.catalog.info.eos_id
    rows = _documents(recipe.paths.root)
    assert len(rows) == 300 + 200 + 40 + 250 + 80 + 60
    covered = dict.fromkeys(streams, 0)
    for row in rows:
        name = row["shard"].rsplit("-", 1)[0]
        tokens, mask, starts = streams[name]
        start = starts[row["shard"]] + row["block"] * 64 + row["offset"]
        here = slice(start, start + row["num_tokens"])
        parts = [reference.encode(text, add_special_tokens=False).ids for text in _text_at(folder, row)]
        assert tokens[here].tolist() == [token for part in parts for token in part] + [eos]
        num_prompt = len(parts[0]) if len(parts) == 2 else 0
        assert row["num_prompt_tokens"] == num_prompt
        if mask is not None:
            assert mask[here].tolist() == [0] * num_prompt + [1] * (row["num_tokens"] - num_prompt)
        covered[name] += row["num_tokens"]
    counted = dict.fromkeys(streams, 0)
    for row in result.catalog.rows:
        counted[row.path.rsplit("-", 1)[0]] += row.num_tokens
    assert covered == counted
    for name, (tokens, mask, _) in streams.items():
        assert (tokens[counted[name] :] == eos).all() and len(tokens) - counted[name] < 64
        assert mask is None or not mask[counted[name] :].any()


def test_labels_run_on_into_the_next_shard(done):
    _, _, result = done
    for name, (tokens, _, starts) in _streams(result.catalog).items():
        for row in [row for row in result.catalog.rows if row.path.rsplit("-", 1)[0] == name]:
            shard = result.catalog.open(row)
            first = starts[row.path]
            last_label = first + row.num_blocks * 64
            if last_label < len(tokens):
                assert shard.tokens_NT[-1, -1] == tokens[last_label]
            assert row.num_labels == min(row.num_blocks * 64, first + row.num_tokens - 1 - first + (last_label < len(tokens)))
            if shard.loss_mask_NT is not None:
                assert row.num_loss_tokens == int(shard.loss_mask_NT[:, 1:].ravel()[: row.num_labels].sum())


def test_webdataset_reads_every_shard_with_unique_keys(done):
    _, _, result = done
    paths = [str(result.catalog.root / row.path) for row in result.catalog.rows]
    samples = list(wds.WebDataset(paths, shardshuffle=False).decode())
    keys = [sample["__key__"] for sample in samples]
    assert len(keys) == len(set(keys)) == sum(row.num_blocks for row in result.catalog.rows)
    strided = np.concatenate([result.catalog.open(row).tokens_NT for row in result.catalog.rows])
    assert np.array_equal(np.stack([sample["tokens.npy"] for sample in samples]), strided)


def test_catalog_is_in_the_order_of_the_recipe_and_counts(done):
    _, _, result = done
    catalog = result.catalog
    assert result.did_work and catalog.sources == ("books", "code", "tables", "notes")
    assert catalog.targets_from_files == ("answers",)
    names = [row.source for row in catalog.rows]
    assert list(dict.fromkeys(names)) == ["books", "code", "tables", "notes", "answers"]
    assert {row.split for row in catalog.rows if row.source == "answers"} == {"valid"}
    assert all(row.has_mask == (row.source == "answers") for row in catalog.rows)
    for name in dict.fromkeys(names):
        rows = [row for row in catalog.rows if row.source == name]
        assert [(row.split, row.path) for row in rows] == sorted((row.split, row.path) for row in rows)
        assert sum(row.num_documents for row in rows) == catalog.info.statistics[name]["num_documents"]
        assert all(row.bytes <= 20_000 or row.num_blocks == 1 for row in rows)


def test_held_out_documents_are_in_the_order_of_their_hash_and_training_ones_in_that_of_the_input(done):
    _, recipe, _ = done
    for path in (recipe.paths.root / "documents").glob("*.parquet"):
        rows = pq.read_table(path).to_pylist()
        valid = [row["text_hash"] for row in rows if row["split"] == "valid"]
        assert valid == sorted(valid)
        train = [int(row["locator"].split()[-1]) for row in rows if row["split"] == "train" and " " in row["locator"]]
        assert train == sorted(train)


def test_one_and_two_workers_give_the_same_bytes(done, tmp_path):
    folder, recipe, _ = done
    other = load_recipe(folder / "recipe.yaml", [f"workdir={tmp_path / 'two'}"])
    preprocess(other, num_workers=2, quiet=True)
    assert _bytes_of(other.paths.root) == _bytes_of(recipe.paths.root)


def test_a_second_run_does_nothing_and_says_so(done):
    _, recipe, result = done
    before = {path: path.stat().st_mtime_ns for path in recipe.paths.root.rglob("*") if path.name != ".preprocess.lock"}
    again = preprocess(recipe, quiet=True)
    assert not again.did_work and "nothing to do" in again.message
    assert again.catalog.fingerprint == result.catalog.fingerprint
    after = {path: path.stat().st_mtime_ns for path in recipe.paths.root.rglob("*") if path.name != ".preprocess.lock"}
    assert before == after


def test_no_document_is_in_both_splits_of_any_source(tmp_path):
    shared = _texts("shared", 40)
    (tmp_path / "a.jsonl").write_bytes(_lines([*_texts("a", 100), *shared, *shared]))
    (tmp_path / "b.jsonl").write_bytes(_lines([*shared, *_texts("b", 100)]))
    (tmp_path / "b-valid.jsonl").write_bytes(_lines([*_texts("b-valid", 20), *shared[:10], _texts("a", 100)[0]]))
    pair = _texts("a", 100)[1].split(" ", 1)
    (tmp_path / "t.jsonl").write_text(json.dumps({"p": pair[0], "c": pair[1]}) + "\n" + json.dumps({"p": "x", "c": "y" * 300}))
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes() + _lines([f"{pair[0]}\n{pair[1]}"]))
    recipe = {
        "tokenizer": {"bytes": True},
        "sources": {"a": {"files": "a.jsonl"}, "b": {"files": "b.jsonl", "valid_files": "b-valid.jsonl"}},
        "shards": {"block_tokens": 64, "valid_fraction": 0.3, "max_partition_bytes": 5000},
        "target": {"sources": {"a": 1, "b": 1}, "files": {"t": {"files": "t.jsonl", "prompt": "p", "completion": "c"}}},
        "search": {"token_budget": "20k", "sequence_length": 16, "global_batch": 4},
        "emit": {"token_budget": "20k"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    result = preprocess(load_recipe(tmp_path / "recipe.yaml"), quiet=True)
    rows = _documents(tmp_path / "run")
    valid = {row["text_hash"] for row in rows if row["split"] == "valid"}
    train = {row["text_hash"] for row in rows if row["split"] == "train"}
    assert valid and train and not valid & train
    read = {"a": 181, "b": 140 + 31, "t": 2}
    for name, counts in result.catalog.info.statistics.items():
        assert counts["num_documents"] + counts["num_leaked_documents"] == read[name]
        assert counts["num_documents"] == sum(row["source"] == name for row in rows)
    assert result.catalog.info.statistics["a"]["num_leaked_documents"] >= 2
    assert result.catalog.info.statistics["b"]["num_leaked_documents"] >= 10
    assert any("training documents were left out because they are held out too" in warning for warning in result.warnings)


_SLOW_RUN = """
import sys, time
from pathlib import Path
import pipelines.preprocess.partition_job as work
from fastmix_data.recipe.file import load_recipe
from pipelines.preprocess.run import preprocess
save = work.save_receipt
def slow(root, receipt):
    time.sleep(0.15)
    save(root, receipt)
work.save_receipt = slow
preprocess(load_recipe(Path(sys.argv[1]), sys.argv[2:]), quiet=True)
"""


def _start_slow_run(folder, workdir, num_receipts):
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW_RUN, str(folder / "recipe.yaml"), f"workdir={workdir}"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(list((workdir / "receipts").glob("*.json"))) < num_receipts:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("num_receipts", [2, 9])
def test_after_kill_9_only_what_is_missing_is_done_and_the_bytes_are_the_same(done, tmp_path, num_receipts):
    folder, recipe, _ = done
    workdir = tmp_path / "killed"
    process = _start_slow_run(folder, workdir, num_receipts)
    process.kill()
    process.communicate()
    assert not (workdir / "catalog.parquet").exists()
    (workdir / "shards" / "books").mkdir(exist_ok=True, parents=True)
    (workdir / "shards" / "books" / "train-000099-00000.tar").write_bytes(b"left over")
    (workdir / "shards" / "books" / "x.tar.123.partial").write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for path in (workdir / "receipts").glob("*.json")}
    result = preprocess(load_recipe(folder / "recipe.yaml", [f"workdir={workdir}"]), quiet=True)
    assert result.did_work and len(kept) >= num_receipts
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert _bytes_of(workdir) == _bytes_of(recipe.paths.root)


def test_ctrl_c_says_how_to_go_on_and_leaves_a_resumable_workdir(done, tmp_path):
    folder, recipe, _ = done
    workdir = tmp_path / "stopped"
    process = _start_slow_run(folder, workdir, 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode != 0 and "run the same command again to go on" in said
    preprocess(load_recipe(folder / "recipe.yaml", [f"workdir={workdir}"]), quiet=True)
    assert _bytes_of(workdir) == _bytes_of(recipe.paths.root)


def test_two_runs_cannot_share_a_workdir(done, tmp_path):
    folder, _, _ = done
    process = _start_slow_run(folder, tmp_path / "held", 1)
    with pytest.raises(FastmixError, match="another fastmix preprocess works in this workdir"):
        preprocess(load_recipe(folder / "recipe.yaml", [f"workdir={tmp_path / 'held'}"]), quiet=True)
    process.kill()
    process.communicate()


def test_a_missing_shard_is_made_again(small):
    recipe = small()
    first = preprocess(recipe, quiet=True)
    before = _bytes_of(recipe.paths.root)
    (recipe.paths.root / first.catalog.rows[0].path).unlink()
    assert preprocess(recipe, quiet=True).did_work
    assert _bytes_of(recipe.paths.root) == before


def test_changed_files_are_refused_by_name_and_replaced_when_asked(small, tmp_path):
    recipe = small()
    preprocess(recipe, quiet=True)
    untouched = (recipe.paths.root / "receipts" / "b-both-000000.json").stat().st_mtime_ns
    os.utime(tmp_path / "a.jsonl", (1, 1))
    assert not preprocess(recipe, quiet=True).did_work, "another time of modification alone is no change"
    size = (tmp_path / "a.jsonl").stat().st_size
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes().replace(b"a-3 ", b"a-x "))
    assert (tmp_path / "a.jsonl").stat().st_size == size
    before = _bytes_of(recipe.paths.root)
    with pytest.raises(MismatchError, match=r"a\.jsonl: changed since .*fastmix preprocess --replace"):
        preprocess(recipe, quiet=True)
    assert _bytes_of(recipe.paths.root) == before
    assert preprocess(recipe, replace=True, quiet=True).did_work
    assert (recipe.paths.root / "receipts" / "b-both-000000.json").stat().st_mtime_ns == untouched
    assert not preprocess(recipe, quiet=True).did_work


def test_added_and_removed_files_are_refused_by_name(small, tmp_path):
    recipe = small(sources={"a": {"files": "[ac].jsonl"}, "b": {"files": "b.jsonl"}})
    preprocess(recipe, quiet=True)
    (tmp_path / "c.jsonl").write_bytes(_lines(_texts("c", 10)))
    with pytest.raises(MismatchError, match=r"c\.jsonl: was added since .*--replace"):
        preprocess(recipe, quiet=True)
    assert preprocess(recipe, replace=True, quiet=True).catalog.info.statistics["a"]["num_documents"] == 70
    (tmp_path / "c.jsonl").unlink()
    with pytest.raises(MismatchError, match=r"c\.jsonl: was removed since .*--replace"):
        preprocess(recipe, quiet=True)
    preprocess(recipe, replace=True, quiet=True)
    assert len(list((recipe.paths.root / "receipts").iterdir())) == 2
    assert {row.path for row in load_catalog(recipe.paths.root / "catalog.parquet").rows} == {
        str(path.relative_to(recipe.paths.root)) for path in recipe.paths.root.rglob("*.tar")
    }


def test_a_changed_recipe_is_refused_by_key(small, tmp_path):
    preprocess(small(), quiet=True)
    changed = small(shards={"block_tokens": 128, "valid_fraction": 0.2}, tokenizer={"bytes": True, "eos_token": "x"})
    with pytest.raises(MismatchError, match=r"shards\.block_tokens was 64, is 128.*--replace"):
        preprocess(changed, quiet=True)
    search = {"token_budget": "40k", "sequence_length": 16, "global_batch": 4}
    assert not preprocess(small(search=search), quiet=True).did_work
    replaced = preprocess(small(shards={"block_tokens": 128, "valid_fraction": 0.2}), replace=True, quiet=True)
    assert replaced.catalog.info.block_tokens == 128


def test_a_changed_tokenizer_file_is_refused(small, tmp_path):
    path = tmp_path / "tok.json"
    path.write_text(train_tokenizer(_texts("a", 60), vocab_size=300), encoding="utf-8")
    recipe = small(tokenizer={"file": "tok.json"})
    preprocess(recipe, quiet=True)
    path.write_text(train_tokenizer(_texts("a", 60), vocab_size=320), encoding="utf-8")
    with pytest.raises(MismatchError, match=r"tokenizer .*--replace"):
        preprocess(recipe, quiet=True)
    assert preprocess(recipe, replace=True, quiet=True).catalog.info.vocab_size == 320


def test_a_tokenizer_fastokens_cannot_read_falls_back_loudly_to_the_reference(small, tmp_path):
    tokenizer = Tokenizer.from_str(train_tokenizer(_texts("a", 60), vocab_size=300))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.save(str(tmp_path / "tok.json"))
    recipe = small(tokenizer={"file": "tok.json"})
    result = preprocess(recipe, quiet=True)
    assert sum("encoded with the slower `tokenizers`" in warning for warning in result.warnings) == 2
    tokens, _, _ = _streams(result.catalog)["shards/b/train-000000"]
    first = next(row for row in _documents(recipe.paths.root) if row["source"] == "b" and row["split"] == "train")
    text = json.loads((tmp_path / "b.jsonl").read_bytes().split(b"\n")[int(first["locator"].split()[1]) - 1])["text"]
    assert tokens[: first["num_tokens"]].tolist() == [*tokenizer.encode(text).ids, result.catalog.info.eos_id]


def test_a_difference_from_the_reference_is_shown_in_the_warning(small, tmp_path):
    recipe = small()
    path, other = tmp_path / "one.json", tmp_path / "two.json"
    path.write_text(byte_tokenizer(), encoding="utf-8")
    other.write_text(train_tokenizer(_texts("a", 60), vocab_size=300), encoding="utf-8")
    from pipelines.preprocess.partitions import plan_partitions

    source = check_inputs(recipe)["a"]
    (partition,) = plan_partitions(source, max_partition_bytes=1 << 20)
    info = describe_tokenizer(path)
    assert choose_backend(source, partition, info, reference=Encoder(path, backend="tokenizers")) == ("fastokens", None)
    backend, warning = choose_backend(source, partition, info, reference=Encoder(other, backend="tokenizers"))
    assert backend == "tokenizers"
    assert "sources.a: " in warning and "a.jsonl, line 1, token 0: id " in warning


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sources": {"a": {"files": "c.jsonl"}}}, InputError, r"sources\.a\.files: there is no file 'c\.jsonl'.*a\.jsonl"),
        ({"sources": {"a": {"files": "*.jsonl.zst"}}}, InputError, r"no file matches '\*\.jsonl\.zst'.*\.jsonl"),
        (
            {"sources": {"a": {"files": "no/such/*.jsonl"}}},
            InputError,
            r"no file matches 'no/such/\*\.jsonl'; there is no folder",
        ),
        ({"sources": {"a": {"files": "a.csv"}}}, InputError, r"a\.csv is of no format fastmix reads; use \.jsonl"),
        ({"sources": {"a": {"files": "empty.jsonl"}}}, InputError, r"empty\.jsonl is empty; remove it or fill it"),
        ({"sources": {"a": {"files": "blank.jsonl"}}}, InputError, r"blank\.jsonl holds no document"),
        ({"sources": {"a": {"files": "empty"}}}, InputError, r"the folder 'empty' has no .*; the folder is empty"),
        ({"sources": {"a": {"files": "a.jsonl", "text": "body"}}}, InputError, r"has no 'body'; the keys there are text"),
        ({"sources": {"a": {"files": "a.parquet"}}}, InputError, r"a\.parquet: has no 'text'; the keys there are body, number"),
        ({"sources": {"a": {"files": "a.parquet", "text": "number"}}}, InputError, r"column 'number' holds int64, not text"),
        ({"sources": {"a": {"files": "not.parquet"}}}, InputError, r"not\.parquet: not a readable Parquet file"),
        ({"sources": {"a": {"files": "cut.jsonl.gz"}}}, InputError, r"cut\.jsonl\.gz: the gzip data is cut short"),
        ({"sources": {"a": {"files": "bad.jsonl"}}}, InputError, r"bad\.jsonl: line 2: not valid JSON"),
        (
            {"sources": {"a": {"files": "a.jsonl", "valid_files": "[ab].jsonl"}}},
            InputError,
            r"a\.jsonl is in files and in valid_files",
        ),
        (
            {"sources": {"a": {"dataset": "org/no-such-dataset"}}},
            InputError,
            r"sources\.a\.dataset: 'org/no-such-dataset' cannot",
        ),
        ({"shards": {"valid_fraction": 0}}, InputError, r"a has no held-out documents; give sources\.a\.valid_files, or raise"),
        ({"tokenizer": {"file": "none.json"}}, RecipeError, r"none\.json: there is no such tokenizer"),
        ({"tokenizer": {"file": "noeos.json"}}, RecipeError, r"has no end-of-text token.*tokenizer\.eos_token"),
    ],
)
def test_bad_input_is_refused_before_any_work(small, tmp_path, changes, error, message):
    import pyarrow as pa

    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "blank.jsonl").write_bytes(b"\n \n")
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n')
    (tmp_path / "not.parquet").write_bytes(b"PAR1 nonsense")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(_lines(_texts("c", 50)))[:-20])
    pq.write_table(pa.table({"body": ["x"], "number": [1]}), tmp_path / "a.parquet")
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "noeos.json"))
    recipe = small(**changes)
    with pytest.raises(error, match=message) as caught:
        check_inputs(recipe)
    assert "\n" not in str(caught.value)
    with pytest.raises(error):
        preprocess(recipe, quiet=True)
    assert not recipe.paths.root.exists()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_in_a_worker_reaches_the_user_as_one_line_and_leaves_no_catalog(small, tmp_path, num_workers):
    good = _texts("a", 2000, 200)
    (tmp_path / "a.jsonl").write_bytes(_lines(good) + b"{oops\n")
    recipe = small()
    with pytest.raises(InputError, match=r"^a\.jsonl: line 2001: not valid JSON .*; fix or remove the line$"):
        preprocess(recipe, num_workers=num_workers, quiet=True)
    workdir = recipe.paths.root
    assert not (workdir / "catalog.parquet").exists()
    assert not list(workdir.rglob("*.partial")) or num_workers == 2
    (tmp_path / "a.jsonl").write_bytes(_lines(good))
    preprocess(recipe, quiet=True)
    assert not list(workdir.rglob("*.partial"))


def test_a_target_without_held_out_documents_is_an_error_with_its_remedy(small, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(_lines(_texts("a", 3)))
    recipe = small(shards={"block_tokens": 64, "valid_fraction": 1e-9})
    with pytest.raises(
        InputError, match=r"target a: none of its documents is held out; raise shards\.valid_fraction .*valid_files"
    ):
        preprocess(recipe, quiet=True)


def test_a_source_smaller_than_a_sequence_is_an_error_right_after_preprocessing(small, tmp_path):
    (tmp_path / "b.jsonl").write_bytes(_lines(["tiny"]))
    recipe = small()
    with pytest.raises(InputError, match=r"source b: its training split has 5 tokens, less than one sequence of 16"):
        preprocess(recipe, quiet=True)
    assert not (recipe.paths.root / "catalog.parquet").exists()


def test_replaced_and_left_out_documents_are_counted_and_said_once(small, tmp_path):
    content = (tmp_path / "b.jsonl").read_bytes()
    (tmp_path / "b.jsonl").write_bytes(content + b'{"text": "caf\xe9"}\n{"text": ""}\n{"text": null}\n')
    result = preprocess(small(), quiet=True)
    assert result.catalog.info.statistics["b"]["num_bad_text"] == 1
    assert result.catalog.info.statistics["b"]["num_empty"] == 2
    assert any(warning == "1 documents had broken UTF-8, which was replaced by U+FFFD (b 1)" for warning in result.warnings)
    assert any(warning == "2 documents without text were left out (b 2)" for warning in result.warnings)


def test_no_scheduler_at_an_address_is_one_line(small):
    with pytest.raises(FastmixError, match=r"--scheduler tcp://127\.0\.0\.1:9: no Dask scheduler answers there") as caught:
        preprocess(small(), scheduler="tcp://127.0.0.1:9", quiet=True)
    assert "\n" not in str(caught.value)


def test_a_running_cluster_does_the_same_work(done, tmp_path):
    import distributed

    folder, recipe, _ = done
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        other = load_recipe(folder / "recipe.yaml", [f"workdir={tmp_path / 'remote'}"])
        preprocess(other, scheduler=cluster.scheduler_address, quiet=True)
    assert _bytes_of(other.paths.root) == _bytes_of(recipe.paths.root)


def test_importing_preprocess_does_not_load_torch():
    program = "import sys, pipelines.preprocess.run, pipelines.preprocess.partition_job; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(InputError("a.jsonl: line 1: x")))
    assert isinstance(error, InputError) and str(error) == "a.jsonl: line 1: x"


@pytest.mark.skipif("FASTMIX_CORPUS" not in os.environ, reason="needs FASTMIX_CORPUS")
def test_documents_of_the_real_corpus_are_what_the_reference_encodes(tmp_path):
    corpus = Path(os.environ["FASTMIX_CORPUS"]).resolve()
    recipe = {
        "tokenizer": {"train": {"vocab_size": 2000, "sample_bytes": 1_000_000}},
        "sources": {
            name: {"files": str(corpus / files)}
            for name, files in {
                "verse": "verse_en/valid-*.jsonl",
                "junk": "junk/valid-*.zst",
                "math": "latex_math/valid-*.gz",
            }.items()
        },
        "shards": {"valid_fraction": 0.2},
        "target": {"sources": {"verse": 1}},
        "search": {"token_budget": "200k"},
        "emit": {"token_budget": "200k"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    result = preprocess(load_recipe(tmp_path / "recipe.yaml"), quiet=True)
    assert not result.warnings
    reference = Tokenizer.from_file(str(tmp_path / "run" / "tokenizer" / "tokenizer.json"))
    streams = _streams(result.catalog)
    for row in _documents(tmp_path / "run"):
        tokens, _, starts = streams[row["shard"].rsplit("-", 1)[0]]
        start = starts[row["shard"]] + row["block"] * 2048 + row["offset"]
        expected = reference.encode(_text_at(Path("/"), row)[0], add_special_tokens=False).ids
        assert tokens[start : start + row["num_tokens"]].tolist() == [*expected, result.catalog.info.eos_id]
