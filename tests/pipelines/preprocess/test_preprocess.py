import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
import xxhash
from small_corpora import documents_of, json_lines, run, streams_of, text_at, texts
from tokenizers import Tokenizer, normalizers

from fastmix_data.arrow_arrays import strings
from fastmix_data.errors import InputError
from fastmix_data.recipe.load import load_recipe
from fastmix_data.tokens.encoder import Encoder
from fastmix_data.tokens.tokenizer import byte_tokenizer, describe_tokenizer, train_tokenizer
from pipelines.preprocess.assemble import padding_share
from pipelines.preprocess.encode_batch import EncodingPlan
from pipelines.preprocess.first_documents import check_first_documents
from pipelines.preprocess.held_out import hash_documents
from pipelines.preprocess.plan import plan_preprocess
from pipelines.rendering.rendering import Rendering


def check_documents(folder, catalog, reference):
    """Every document lies where its row says, encoded as the reference does, and nothing but padding lies between documents."""
    streams, block_tokens, eos = streams_of(catalog), catalog.info.block_tokens, catalog.info.eos_id
    is_covered = {name: np.zeros(len(tokens), np.bool_) for name, (tokens, _, _) in streams.items()}
    for row in documents_of(catalog.root):
        name = row["shard"].rsplit("-", 1)[0]
        tokens, mask, starts = streams[name]
        start = starts[row["shard"]] + row["block"] * block_tokens + row["offset"]
        here = slice(start, start + row["num_tokens"])
        parts = text_at(folder, row)
        encoded = reference.encode("".join(parts), add_special_tokens=False)
        assert tokens[here].tolist() == [*encoded.ids, eos]
        # A token that holds a character of the completion is to be learned.
        border = len(parts[0]) if len(parts) == 2 else 0
        num_prompt = sum(end <= border for _, end in encoded.offsets)
        assert row["num_prompt_tokens"] == num_prompt
        if mask is not None:
            assert mask[here].tolist() == [0] * max(num_prompt, 1) + [1] * (row["num_tokens"] - max(num_prompt, 1))
        assert not is_covered[name][here].any()
        is_covered[name][here] = True
    num_tokens, num_padding = Counter(), Counter()
    for row in catalog.rows:
        num_tokens[row.path.rsplit("-", 1)[0]] += row.num_tokens
        num_padding[row.path.rsplit("-", 1)[0]] += row.num_padding
    for name, (tokens, mask, _) in streams.items():
        assert (tokens[~is_covered[name]] == eos).all() and len(tokens) - num_tokens[name] < block_tokens
        assert mask is None or not mask[~is_covered[name]].any()
        assert not is_covered[name][num_tokens[name] :].any()
        assert num_padding[name] == num_tokens[name] - is_covered[name].sum() and (mask is not None or num_padding[name] == 0)


def test_every_document_can_be_joined_again_and_is_what_the_reference_encodes(done):
    folder, recipe, result = done
    assert len(documents_of(recipe.paths.root)) == 300 + 200 + 40 + 250 + 80 + 60
    check_documents(folder, result.catalog, Tokenizer.from_file(str(recipe.paths.tokenizer)))


@pytest.mark.skipif("FASTMIX_CORPUS" not in os.environ, reason="needs FASTMIX_CORPUS")
def test_documents_of_the_real_corpus_are_what_the_reference_encodes(tmp_path):
    corpus = Path(os.environ["FASTMIX_CORPUS"]).resolve()
    files = {"verse": "verse_en/valid-*.jsonl", "junk": "junk/valid-*.zst", "math": "latex_math/valid-*.gz"}
    recipe = {
        "tokenizer": {"train": {"vocab_size": 2000, "sample_bytes": 1_000_000}},
        "sources": {name: {"files": str(corpus / pattern)} for name, pattern in files.items()},
        "shards": {"valid_fraction": 0.2},
        "target": {"sources": {"verse": 1}},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    result = run(recipe)
    assert not result.warnings
    check_documents(Path("/"), result.catalog, Tokenizer.from_file(str(recipe.paths.tokenizer)))


def test_labels_run_on_into_the_next_shard(done):
    _, _, result = done
    for name, (tokens, _, starts) in streams_of(result.catalog).items():
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
        valid = [row["text_hash"] for row in rows if row["split"] == "valid" and row["source"] != "answers"]
        assert valid == sorted(valid)
        train = [int(row["locator"].split()[-1]) for row in rows if row["split"] == "train" and " " in row["locator"]]
        assert train == sorted(train)


def test_no_document_is_in_both_splits_of_any_source(tmp_path):
    shared = texts("shared", 40)
    (tmp_path / "a.jsonl").write_bytes(json_lines([*texts("a", 100), *shared, *shared]))
    (tmp_path / "b.jsonl").write_bytes(json_lines([*shared, *texts("b", 100)]))
    (tmp_path / "b-valid.jsonl").write_bytes(json_lines([*texts("b-valid", 20), *shared[:10], texts("a", 100)[0]]))
    pair = texts("a", 100)[1].split(" ", 1)
    (tmp_path / "t.jsonl").write_text(json.dumps({"p": pair[0], "c": pair[1]}) + "\n" + json.dumps({"p": "x", "c": "y" * 300}))
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes() + json_lines([f"{pair[0]}\n{pair[1]}"]))
    recipe = {
        "tokenizer": {"bytes": True},
        "sources": {"a": {"files": "a.jsonl"}, "b": {"files": "b.jsonl", "valid_files": "b-valid.jsonl"}},
        "shards": {"block_tokens": 64, "valid_fraction": 0.3, "max_partition_bytes": 5000},
        "target": {"sources": {"a": 1, "b": 1}, "files": {"t": {"files": "t.jsonl", "prompt": "p", "completion": "c"}}},
        "training": {"token_budget": "20k", "sequence_length": 16, "global_batch": 4},
        "emit": {"token_budget": "20k"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    result = run(load_recipe(tmp_path / "recipe.yaml"))
    rows = documents_of(tmp_path / "run")
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


def test_a_tokenizer_fastokens_cannot_read_falls_back_loudly_to_the_reference(small, tmp_path):
    tokenizer = Tokenizer.from_str(train_tokenizer(texts("a", 60), vocab_size=300))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.save(str(tmp_path / "tok.json"))
    recipe = small(tokenizer={"file": "tok.json"})
    result = run(recipe)
    assert sum("encoded with the slower `tokenizers`" in warning for warning in result.warnings) == 2
    tokens, _, _ = streams_of(result.catalog)["shards/b/train-000000"]
    first = next(row for row in documents_of(recipe.paths.root) if row["source"] == "b" and row["split"] == "train")
    text = json.loads((tmp_path / "b.jsonl").read_bytes().split(b"\n")[int(first["locator"].split()[1]) - 1])["text"]
    assert tokens[: first["num_tokens"]].tolist() == [*tokenizer.encode(text).ids, result.catalog.info.eos_id]


def test_a_difference_from_the_reference_is_shown_in_the_warning(small, tmp_path):
    recipe = small()
    path, other = tmp_path / "one.json", tmp_path / "two.json"
    path.write_text(byte_tokenizer(), encoding="utf-8")
    other.write_text(train_tokenizer(texts("a", 60), vocab_size=300), encoding="utf-8")
    plan = plan_preprocess(recipe)
    source, (partition,) = plan.inputs["a"], plan.partitions["a"]
    encoding = EncodingPlan("sources.a", describe_tokenizer(path), "tokenizers", Rendering("", "text"), 0.01)
    fast, same = Encoder(path, backend="fastokens"), Encoder(path, backend="tokenizers")
    assert check_first_documents(source, partition, encoding, reference=same, fast=fast) == ("fastokens", [])
    differs = Encoder(other, backend="tokenizers")
    backend, (warning,) = check_first_documents(source, partition, encoding, reference=differs, fast=fast)
    assert backend == "tokenizers"
    assert "sources.a: " in warning and "a.jsonl, line 1, token 0: id " in warning


def test_replaced_and_left_out_documents_are_counted_and_said_once(small, tmp_path):
    content = (tmp_path / "b.jsonl").read_bytes()
    (tmp_path / "b.jsonl").write_bytes(content + b'{"text": "caf\xe9"}\n{"text": ""}\n{"text": null}\n')
    result = run(small())
    assert result.catalog.info.statistics["b"]["num_bad_text"] == 1
    assert result.catalog.info.statistics["b"]["num_empty"] == 2
    assert any(warning == "1 documents had broken UTF-8, which was replaced by U+FFFD (b 1)" for warning in result.warnings)
    assert any(
        warning == "2 documents without text, or conversations without an answer, were left out (b 2)"
        for warning in result.warnings
    )


def test_hundreds_of_tiny_files_fill_their_blocks_and_padding_is_said(small, tmp_path):
    for number, text in enumerate(texts("tiny", 600, 40)):
        (tmp_path / "tiny" / f"{number:03d}").mkdir(parents=True)
        (tmp_path / "tiny" / f"{number:03d}" / "one.jsonl").write_bytes(json_lines([text]))
    result = run(small(sources={"tiny": {"files": "tiny"}}, target=None))
    assert len(result.catalog.rows) == 2 and 0 < padding_share(result.catalog) < 0.01
    assert f"in 2 shards ({padding_share(result.catalog):.1%} padding)" in result.message
    assert not any("padding" in warning for warning in result.warnings)
    large = run(small(sources={"tiny": {"files": "tiny"}}, target=None, shards={"block_tokens": 1 << 19}), replace=True)
    assert any("of the positions in the shards are padding" in warning for warning in large.warnings)
    assert any("lower shards.block_tokens from 524288" in warning for warning in large.warnings)


def test_held_out_copies_of_the_training_files_are_named_as_such(small, tmp_path):
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    sources = {"a": {"files": "a.jsonl", "valid_files": "copy.jsonl"}, "b": {"files": "b.jsonl"}}
    with pytest.raises(
        InputError, match=r"source a: 60 of its 60 .*valid_files hold the same documents as files; .*leave them out"
    ):
        run(small(sources=sources))
    target = {"files": {"t": {"files": "copy.jsonl"}}}
    with pytest.raises(InputError, match=r"source a: \d+ of its \d+ .* are in a target's files or another source's valid_files"):
        run(small(target=target), replace=True)


def test_a_name_that_is_not_utf8_goes_through_workers_tables_and_receipts(small, tmp_path):
    name = os.fsdecode(b"caf\xe9.jsonl")
    (tmp_path / name).write_bytes((tmp_path / "a.jsonl").read_bytes())
    recipe = small(sources={"a": {"files": "caf?.jsonl"}})
    run(recipe, num_workers=2)
    assert {row["file"] for row in documents_of(recipe.paths.root)} == {r"caf\xe9.jsonl"}
    assert not run(recipe).did_work
    (tmp_path / name).write_bytes(json_lines(texts("a", 60)) + b"{oops\n")
    with pytest.raises(InputError, match=r"^caf\\xe9\.jsonl: line 61: not valid JSON"):
        run(recipe, replace=True)


def test_importing_preprocess_does_not_load_torch():
    program = "import sys, pipelines.preprocess.run, pipelines.preprocess.partition_job; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(InputError("a.jsonl: line 1", "is odd", "fix it")))
    assert isinstance(error, InputError) and (error.where, error.what, error.remedy) == ("a.jsonl: line 1", "is odd", "fix it")


def test_a_conversation_is_known_by_the_hash_of_its_json_text():
    batch = pa.RecordBatch.from_arrays([strings(["[1]", "[2]"]), strings(["line 1", "line 2"])], names=["messages", "locator"])
    assert hash_documents(batch).tolist() == [xxhash.xxh3_64_intdigest(text) for text in (b"[1]", b"[2]")]
