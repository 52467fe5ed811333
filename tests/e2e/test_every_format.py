"""What `init` writes for a folder with every format and layout runs unchanged, and every document of it is there."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from click.testing import CliRunner

from fastmix_data.shards.catalog import load_catalog
from pipelines.cli.main import main

NUM_RECORDS = 120
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"


def records(layout: str) -> list[dict[str, Any]]:
    """Records of a usual layout, each with enough text for some sequences all together."""
    answer = "because the river runs to the sea and never the other way round"
    made = []
    for number in range(NUM_RECORDS):
        question = f"why does question {number} of {layout} have no end, asked the teacher of geography"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        made.append(
            {
                "text": {"text": f"{question}? {answer}, they said in {layout}."},
                "late": {"text": None if number < 5 else f"{question}? {answer}, they said at last."},
                "alpaca": {"instruction": question, "input": f"the map of {number}" if number % 2 else "", "output": answer},
                "squad": {"context": answer * 2, "question": question, "answers": {"text": [answer], "answer_start": [0]}},
                "options": {"question": question, "choices": {"text": ["sea", "hill"], "label": ["A", "B"]}, "answerKey": "A"},
                "sharegpt": {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
                "messages": {"id": number, "messages": turns},
            }[layout]
        )
    return made


def lines(layout: str) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records(layout))


def write_corpora(folder: Path) -> dict[str, int]:
    """Sources of every format; the number of documents of each."""

    def put(name: str, content: bytes) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    put("plain/a.jsonl", lines("text"))
    put("upper/A.JSONL", lines("text"))
    put("nd/a.ndjson", lines("text"))
    put("c4/part-0.json.gz", gzip.compress(lines("text")))
    long_window = zstandard.ZstdCompressionParameters(window_log=31, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=long_window).compressobj()
    put("packed/a.jsonl.zst", compressor.compress(lines("late")) + compressor.flush())
    put("alpaca/a.json", json.dumps(records("alpaca"), indent=1).encode())
    put("sharegpt/a.json", json.dumps(records("sharegpt")).encode())
    put("chat/a.jsonl.gz", gzip.compress(lines("messages")))
    put("options/a.jsonl", lines("options"))
    for name, layout in (("squad", "squad"), ("turns", "messages")):
        (folder / name).mkdir()
        pq.write_table(pa.Table.from_pylist(records(layout)), folder / name / "a.parquet")
    (folder / "nulls").mkdir()
    pq.write_table(pa.table({"text": pa.nulls(3)}), folder / "nulls" / "part-0.parquet")
    pq.write_table(pa.Table.from_pylist(records("text")), folder / "nulls" / "part-1.Parquet")
    for number, record in enumerate(records("text")):
        put(f"texts/deep/{number}.TXT", record["text"].encode())
    (folder / "tiny").mkdir()
    for number, line in enumerate(lines("text").splitlines(keepends=True)):
        put(f"tiny/{number:03d}.jsonl", line)
    (folder / "linked").symlink_to(folder.parent / "elsewhere")
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(lines("text"))
    # Nothing of these is data.
    put("plain/._a.jsonl", b"\0\5\26\7junk")
    put("texts/.ipynb_checkpoints/1.txt", b"junk " * 100)
    put("pointers/a.parquet", POINTER)
    put("plain/dataset_info.json", b'{"description": "of the data", "n": 5}')
    names = (
        *("plain", "upper", "nd", "c4", "packed", "alpaca", "sharegpt", "chat"),
        *("options", "squad", "turns", "nulls", "texts_deep", "tiny", "linked"),
    )
    return dict.fromkeys(names, NUM_RECORDS) | {"packed": NUM_RECORDS - 5}


def invoke(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_the_recipe_that_init_writes_runs_unchanged(tmp_path: Path) -> None:
    folder = tmp_path / "corpora [v2]"
    folder.mkdir()
    expected = write_corpora(folder)
    result = CliRunner().invoke(main, ["init", str(folder)])
    assert result.exit_code == 0, result.output
    recipe = (folder / "recipe.yaml").read_text()
    assert "pointers/a.parquet" in recipe and "git lfs pull" in recipe
    invoke("preprocess", folder / "recipe.yaml")
    catalog = load_catalog(folder / "run" / "catalog.parquet")
    found = dict.fromkeys(catalog.sources, 0)
    for row in catalog.rows:
        found[row.source] += row.num_documents
    assert found == expected
    masked = {row.source for row in catalog.rows if row.has_mask}
    assert masked == {"alpaca", "sharegpt", "chat", "options", "squad", "turns"}
