"""The plan refuses what it can, is made once, and asks the recipe for nothing that preprocessing does not need."""

import gzip
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpora import json_lines, run, texts
from tokenizers import Tokenizer, models

from fastmix_data.errors import InputError, RecipeError
from fastmix_data.machine import Workers
from pipelines.inputs import files as inputs
from pipelines.inputs import parquet_ranges
from pipelines.preprocess import plan
from pipelines.preprocess.plan import plan_preprocess
from pipelines.preprocess.run import preprocess
from pipelines.reading import tables


def test_a_run_resolves_plans_and_opens_each_input_once(small, tmp_path, monkeypatch):
    calls = Counter()

    def count(module, name, key):
        real = getattr(module, name)

        def counted(*arguments, **options):
            calls[name, key(*arguments)] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, counted)

    pq.write_table(pa.table({"text": texts("b", 60)}), tmp_path / "b.parquet")
    recipe = small(sources={"a": {"files": "a.jsonl"}, "b": {"files": "b.parquet"}})
    count(inputs, "resolve_files", lambda patterns: patterns[0])
    count(plan, "plan_partitions", lambda inputs: inputs.name)
    count(plan, "read_partition", lambda partition, *_: partition.source)
    count(parquet_ranges, "open_binary", lambda path: path.rsplit("/", 1)[-1])
    planned = plan_preprocess(recipe)
    once = {
        ("resolve_files", "a.jsonl"): 1,
        ("resolve_files", "b.parquet"): 1,
        ("plan_partitions", "a"): 1,
        ("plan_partitions", "b"): 1,
        ("read_partition", "a"): 1,  # planning has looked into the Parquet file already
        ("open_binary", "b.parquet"): 1,
    }
    assert calls == once
    count(tables, "open_binary", lambda path: f"{path.rsplit('/', 1)[-1]} is read")
    assert preprocess(planned, workers=Workers(quiet=True)).did_work
    # To compare the encoders on its first documents, and to encode it.
    assert calls == once | {("open_binary", "b.parquet is read"): 2}
    assert not preprocess(planned, workers=Workers(quiet=True)).did_work
    assert calls == once | {("open_binary", "b.parquet is read"): 2}


def test_a_recipe_of_tokenizer_and_sources_is_enough(small):
    bare = run(small(target=None, training=None))
    assert bare.did_work and bare.catalog.sources == ("a", "b") and bare.catalog.targets_from_files == ()
    assert {row.split for row in bare.catalog.rows} == {"train", "valid"}
    # What is added to the recipe for later commands changes nothing of the shards.
    full = run(small(emit={"token_budget": "20k"}))
    assert not full.did_work and full.catalog.info == bare.catalog.info


def test_without_training_only_an_empty_training_split_is_refused(small, tmp_path):
    (tmp_path / "b.jsonl").write_bytes(json_lines(["x"]))
    assert run(small(target=None, training=None)).catalog.num_tokens("b") == 2
    (tmp_path / "b.jsonl").write_bytes(json_lines([""]))
    (tmp_path / "a-valid.jsonl").write_bytes(json_lines(texts("a", 1)))
    sources = {"a": {"files": "a.jsonl"}, "b": {"files": "b.jsonl", "valid_files": "a-valid.jsonl"}}
    with pytest.raises(InputError, match=r"source b: its training split has 0 tokens; give it more text, or remove it"):
        run(small(target=None, training=None, sources=sources), replace=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"sources": {"a": {"files": "c.jsonl"}}},
            InputError,
            r"sources\.a\.files: there is no file 'c\.jsonl'; the nearest there is \w+\.jsonl",
        ),
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
        (
            {"sources": {"a": {"files": "turns.parquet", "messages": "turns"}}},
            InputError,
            r"turns\.parquet: row 0: turn 1 of 'turns' is of the unknown role 'narrator'",
        ),
        (
            {"target": {"files": {"t": {"files": "a.parquet", "text": "{body[0]}"}}}},
            InputError,
            r"target\.files\.t: a\.parquet: column 'body\[0\]' leads through string, which has no 'elements'",
        ),
        (
            {"target": {"files": {"t": {"files": "note.txt", "prompt": "q", "completion": "a"}}}},
            InputError,
            r"target\.files\.t\.prompt: note\.txt is text without keys",
        ),
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
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "blank.jsonl").write_bytes(b"\n \n")
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n')
    (tmp_path / "not.parquet").write_bytes(b"PAR1 nonsense")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json_lines(texts("c", 50)))[:-20])
    pq.write_table(pa.table({"body": ["x"], "number": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"turns": [[{"role": "narrator", "content": "x"}]]}), tmp_path / "turns.parquet")
    (tmp_path / "note.txt").write_text("a note")
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "noeos.json"))
    recipe = small(**changes)
    with pytest.raises(error, match=message) as caught:
        plan_preprocess(recipe)
    assert "\n" not in str(caught.value)
    assert not recipe.paths.root.exists()


def test_a_target_without_held_out_documents_is_an_error_with_its_remedy(small, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts("a", 3)))
    recipe = small(shards={"block_tokens": 64, "valid_fraction": 1e-9})
    with pytest.raises(
        InputError, match=r"target a: none of its documents is held out; raise shards\.valid_fraction .*valid_files"
    ):
        run(recipe)


def test_a_source_smaller_than_a_sequence_is_an_error_right_after_preprocessing(small, tmp_path):
    (tmp_path / "b.jsonl").write_bytes(json_lines(["tiny"]))
    recipe = small()
    with pytest.raises(InputError, match=r"source b: its training split has 5 tokens, less than one sequence of 16"):
        run(recipe)
    assert not (recipe.paths.root / "catalog.parquet").exists()
