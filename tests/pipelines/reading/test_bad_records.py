"""Bad records: one stops the reading, or is left out, counted and kept."""

import base64
import gzip
import io
import json

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from read_sources import read

from fastmix_data.errors import InputError
from pipelines.reading.bad_records import BadRecords
from pipelines.reading.bad_text import DocumentCounts

BAD_LINES = [b"{oops", b'["a"]', b'{"body": "x"}', b'{"text": 3}', b'{"text": "caf\xe9"}']
REASONS = ["not valid JSON", "holds a JSON array", "has no 'text'", "'text' holds a JSON number", "not valid UTF-8"]


def _write(folder, form):
    """Good records around bad ones; the reasons and raw bytes of these, and a source that names the file."""
    if form == "parquet":
        turns = [
            [{"role": "user", "content": "q"}, {"role": role, "content": role}] for role in ("assistant", "narrator", "assistant")
        ]
        pq.write_table(pa.table({"m": turns, "id": [1, 2, 3]}), folder / "a.parquet")
        raw = orjson.dumps({"m": turns[1]})
        return {"files": "a.parquet", "messages": "m"}, ["turn 2 of 'm' is of the unknown role 'narrator'"], [raw], ["row 1"]
    if form == "txt":
        for name, content in (("a", b"good"), ("b", b"caf\xe9"), ("c", b"good")):
            (folder / f"{name}.txt").write_bytes(content)
        return {"files": "*.txt", "on_bad_text": "refuse"}, ["not valid UTF-8"], [b"caf\xe9"], ["file"]
    good = [b'{"text": "good"}'] * 10
    lines = b"\n".join([*good, *BAD_LINES, *good])
    compress = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[form]
    (folder / f"a.{form}").write_bytes(compress(lines))
    places = [f"line {number}" for number in range(11, 16)]
    return {"files": f"a.{form}", "on_bad_text": "refuse"}, REASONS, BAD_LINES, places


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt"])
def test_bad_records_stop_the_reading_or_are_left_out_counted_and_kept(tmp_path, form):
    source, reasons, raws, places = _write(tmp_path, form)
    with pytest.raises(InputError, match=r"set on_bad_record: skip or quarantine$"):
        read(tmp_path, source)
    kept = io.BytesIO()
    bad_records = BadRecords("quarantine", lambda: kept)
    rows, counts, _ = read(tmp_path, source | {"on_bad_record": "quarantine"}, bad_records=bad_records)
    assert len(rows) == (20 if form.startswith("jsonl") else 2)
    assert counts == DocumentCounts(num_bad_records=len(reasons))
    assert bad_records.first.startswith(f"{'b.txt' if form == 'txt' else f'a.{form}'}, {places[0]}: {reasons[0]}")
    entries = [json.loads(line) for line in kept.getvalue().splitlines()]
    assert [entry["locator"] for entry in entries] == places
    assert all(entry["reason"].startswith(reason) for entry, reason in zip(entries, reasons, strict=True))
    assert [entry["raw"].encode() if "raw" in entry else base64.b64decode(entry["raw_base64"]) for entry in entries] == raws
    assert read(tmp_path, source | {"on_bad_record": "skip"})[:2] == (rows, counts)


def test_bad_records_of_a_byte_range_are_placed_by_their_byte(tmp_path):
    good, bad = b'{"text": "good"}\n', b'{"text": 3}\n'
    (tmp_path / "a.jsonl").write_bytes(good * 20 + bad + good * 20)
    kept = io.BytesIO()
    source = {"files": "a.jsonl", "on_bad_record": "quarantine"}
    rows, _, num_partitions = read(tmp_path, source, max_partition_bytes=100, bad_records=BadRecords("quarantine", lambda: kept))
    assert len(rows) == 40 and num_partitions > 5
    assert json.loads(kept.getvalue())["locator"] == f"byte {20 * len(good)}"


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_more_than_half_bad_among_the_first_thousand_is_a_wrong_key(tmp_path, form):
    source, message = {"files": f"a.{form}"}, r"501 of the first \d+ records are bad, the first is .*; name the key"
    for num_good, is_wrong in ((400, True), (600, False)):
        values = ["good"] * num_good + [3] * 600 + ["good"] * 1000
        if form == "jsonl":
            (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
        else:  # a list of one role each, which is known by row only
            turns = [[{"role": "assistant" if value == "good" else "x", "content": "c"}] for value in values]
            pq.write_table(pa.table({"m": turns}), tmp_path / "a.parquet")
            source |= {"messages": "m"}
        if is_wrong:
            with pytest.raises(InputError, match=message):
                read(tmp_path, source | {"on_bad_record": "skip"})
        else:
            rows, counts, _ = read(tmp_path, source | {"on_bad_record": "skip"}, batch_bytes=1000)
            assert (len(rows), counts.num_bad_records) == (1600, 600)


@pytest.mark.parametrize("mode", ["skip", "quarantine"])
def test_a_damaged_file_is_no_bad_record(tmp_path, mode):
    content = zstandard.compress(b'{"text": "good"}\n' * 1000)
    (tmp_path / "a.jsonl.zst").write_bytes(content[:-5])
    with pytest.raises(InputError, match=r"a\.jsonl\.zst: .*cut short"):
        read(tmp_path, {"files": "a.jsonl.zst", "on_bad_record": mode})
    pq.write_table(pa.table({"text": ["good"] * 1000}), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    damaged = bytearray((tmp_path / "a.parquet").read_bytes())
    damaged[4:60] = b"\xff" * 56  # the header of its first page
    (tmp_path / "a.parquet").write_bytes(damaged)
    with pytest.raises(InputError, match=r"a\.parquet: damaged Parquet data"):
        read(tmp_path, {"files": "a.parquet", "on_bad_record": mode})


def test_broken_json_within_a_column_of_json_is_a_bad_record(tmp_path):
    cells = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"good"', "{oops", '["a"]']))
    pq.write_table(pa.table({"text": cells}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: row 1: not valid JSON"):
        read(tmp_path, {"files": "a.parquet"})
    rows, counts, _ = read(tmp_path, {"files": "a.parquet", "on_bad_record": "skip"})
    assert ([row["text"] for row in rows], counts.num_bad_records) == (["good"], 2)
