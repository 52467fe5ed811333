"""JSON and Parquet that other programs stumble over: each is read, or refused in one line."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from read_sources import inputs_of, read

from fastmix_data.errors import InputError
from pipelines.reading.first_records import first_records

DEEP = b'{"text": "a", "x": ' + b"[" * 3000 + b"]" * 3000 + b"}"


def _refused(tmp_path, source, message):
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"text": "a", "n": ' + b"9" * 5000 + b', "x": NaN, "y": -Infinity, "z": 1e999}', "a"),
        (b'{"text": "first", "text": "last"}', "last"),
        (b'{"\\u0000": 1, "text": "a\\u0000b"}', "a\0b"),
        (b'{"text": "\\ud83e\\udd26 \\ud800"}', "\U0001f926 \ufffd"),
        (b' \t{"text": "a"} \r', "a"),
        (b'{"text": "a", "x": ' + b"[" * 900 + b"]" * 900 + b"}", "a"),
        (b'{"text": "' + b"a" * 5_000_000 + b'"}', "a" * 5_000_000),
    ],
    ids=["numbers", "a key twice", "NUL", "surrogates", "blanks", "deep", "long"],
)
def test_odd_json_is_read(tmp_path, line, text):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    assert [row["text"] for row in read(tmp_path, {"files": "a.jsonl"})[0]] == ["before", text, "after"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (DEEP, r"line 2: nested too deep to be read"),
        (b'{"text": "a"}{"text": "b"}', r"line 2: holds more than one JSON value; write one object a line"),
        (b'{"text": "a"}\r{"text": "b"}\r', r"line 2: holds more than one JSON value; .*a line ends with \\n"),
        (b'{"text": "a"},', r"line 2: a comma follows the JSON value; write one object a line, with no list"),
        (b'{"text": "a",}', r"line 2: not valid JSON \(trailing comma is not allowed at column 13\); fix or remove the line"),
        (b'{"text": "a\0b"}', r"line 2: not valid JSON \(unexpected control character"),
        (b"\0" * 40, r"line 2: not valid JSON"),
        (b'"text"', r"line 2: holds a JSON string, not an object with the key 'text'"),
        (b"3", r"line 2: holds a JSON number, not an object"),
        (b'{"text": NaN}', r"line 2: 'text' holds a JSON number, not text"),
        (b'{"text": {"a": 1}}', r"line 2: 'text' holds a JSON object, not text"),
    ],
)
def test_json_that_is_no_record_is_refused_by_line(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    _refused(tmp_path, {"files": "a.jsonl"}, r"^a\.jsonl: " + message)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_is_named_whatever_the_recipe_says_of_bad_text(tmp_path, encoding):
    (tmp_path / "a.jsonl").write_bytes('{"text": "a"}\n{"text": "b"}\n'.encode(encoding))
    for keys in ({}, {"on_bad_record": "skip"}):
        _refused(tmp_path, {"files": "a.jsonl"} | keys, r"^a\.jsonl: is UTF-16 or UTF-32, not UTF-8; .*iconv")
    with pytest.raises(InputError, match="is UTF-16"):
        first_records(inputs_of(tmp_path, {"files": "a.jsonl"}).files[0], 1)
    if encoding in ("utf-16", "utf-32"):
        (tmp_path / "a.txt").write_bytes("text".encode(encoding))
        _refused(tmp_path, {"files": "a.txt"}, r"^a\.txt: line 1: is UTF-16 or UTF-32")


TEXTS = ["a", None, "naïve"]
STRUCT = pa.struct([("b", pa.string())])


@pytest.mark.parametrize(
    ("column", "key"),
    [
        *((pa.array(TEXTS, kind), "text") for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))),
        *((pa.array([text and text.encode() for text in TEXTS], kind), "text") for kind in (pa.binary(), pa.binary_view())),
        (pa.array([json.dumps(text) for text in TEXTS], pa.json_()), "text"),
        (pa.array([{"b": text} for text in TEXTS], STRUCT), "text.b"),
        (pa.array([[{"b": text}] for text in TEXTS], pa.large_list(STRUCT)), "text[0].b"),
        (pa.array([[text] for text in TEXTS], pa.list_(pa.string_view(), 1)), "text[*]"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else value,
)  # fmt: skip
@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_columns_of_every_kind_of_text_are_read(tmp_path, column, key, form):
    table = pa.table({"text": column, "id": [1, 2, 3]})
    if form == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
        rows, counts, _ = read(tmp_path, {"files": "a.parquet", "text": key})
    else:
        datasets = pytest.importorskip("datasets")
        try:
            datasets.Dataset(table).save_to_disk(tmp_path / "saved")
        except (ValueError, NotImplementedError, pa.ArrowException) as error:
            pytest.skip(f"`datasets` does not hold this type: {error}")
        rows, counts, _ = read(tmp_path, {"dataset": "saved", "text": key})
    assert [(row["text"], row["locator"]) for row in rows] == [("a", "row 0"), ("naïve", "row 2")]
    assert counts.num_empty == 1


@pytest.mark.parametrize("key", ["text", "text.b", "text[0]", "{text}"])
def test_a_part_in_which_every_text_is_null_counts_as_empty(tmp_path, key):
    pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "a.parquet")
    value = {"text": "x", "{text}": "x", "text.b": {"b": "x"}, "text[0]": ["x"]}[key]
    pq.write_table(pa.table({"text": [value]}), tmp_path / "b.parquet")
    rows, counts, _ = read(tmp_path, {"files": "*.parquet", "text": key})
    assert [row["text"] for row in rows] == ["x"] and counts.num_empty == 3
    assert first_records(inputs_of(tmp_path, {"files": "*.parquet"}).files[0], 2) == [{"text": None}] * 2


@pytest.mark.parametrize(
    ("table", "keys", "message"),
    [
        ({"text": pa.array([1, 2])}, {}, r"column 'text' holds int64, not text; name another column"),
        ({"text": pa.array([1]).cast(pa.decimal128(30, 2))}, {}, r"column 'text' holds decimal128\(30, 2\), not text"),
        ({"text": pa.array([b"ab"], pa.binary(2))}, {}, r"column 'text' holds fixed_size_binary\[2\], not text"),
        ({"a": pa.array([["x"]])}, {"text": "a"}, r"column 'a' holds list<.*>, not text"),
        ({"a": pa.array([{"b": 1}])}, {"text": "a.b"}, r"column 'a\.b' holds int64, not text"),
        ({"a": pa.array([{"b": 1}])}, {"text": "a.c"}, r"has no 'a\.c'; the keys there are b"),
        ({"a": pa.array(["x"])}, {"text": "a.b"}, r"column 'a\.b' leads through string, which has no 'b'"),
        ({"a": pa.array([["x"]])}, {"text": "{a}"}, r"column 'a' holds list<.*>, not text"),
        ({"a": pa.array([1])}, {"messages": "a"}, r"column 'a' holds int64, not text"),
        ({"a": pa.array(["x"])}, {"prompt": "a", "completion": "b"}, r"has no 'b'; the keys there are a"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_columns_of_other_types_are_refused_in_one_line(tmp_path, table, keys, message, form):
    if form == "parquet":
        pq.write_table(pa.table(table), tmp_path / "a.parquet")
        _refused(tmp_path, {"files": "a.parquet"} | keys, r"^sources\.src: a\.parquet: " + message)
    else:
        datasets = pytest.importorskip("datasets")
        try:
            datasets.Dataset(pa.table(table)).save_to_disk(tmp_path / "saved")
        except (ValueError, NotImplementedError) as error:
            pytest.skip(f"`datasets` does not hold this type: {error}")
        _refused(tmp_path, {"dataset": "saved"} | keys, r"^sources\.src: dataset saved: " + message)


def test_two_columns_of_a_name_are_refused_only_where_they_are_asked_for(tmp_path):
    columns = [pa.array(["a", "b"]), pa.array(["c", "d"]), pa.array(["e", "f"])]
    pq.write_table(pa.table(columns, ["text", "text", "body"]), tmp_path / "a.parquet")
    _refused(tmp_path, {"files": "a.parquet"}, r"sources\.src: a\.parquet: has 2 columns named 'text'; rename or remove one")
    assert [row["text"] for row in read(tmp_path, {"files": "a.parquet", "text": "body"})[0]] == ["e", "f"]
    assert first_records(inputs_of(tmp_path, {"files": "a.parquet"}).files[0], 1) == [{"body": "e"}]


def test_broken_utf8_within_nested_columns_is_replaced_and_counted(tmp_path):
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 3], np.int32)), pa.py_buffer(b"ab\xff"))
    nested = pa.StructArray.from_arrays([broken], ["b"])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), nested)
    pq.write_table(pa.table({"a": nested, "l": lists}), tmp_path / "a.parquet")
    for key in ("a.b", "l[*].b", "{l[0].b}"):
        rows, counts, _ = read(tmp_path, {"files": "a.parquet", "text": key})
        assert [row["text"] for row in rows] == ["a", "b\ufffd"] and counts.num_bad_text == 1
        _refused(tmp_path, {"files": "a.parquet", "text": key, "on_bad_text": "refuse"}, r"a\.parquet: row 1: not valid UTF-8")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"text": "body"}, r"sources\.src\.text: a\.txt is text without keys, so there is no 'body' in it; remove the key"),
        ({"prompt": "q", "completion": "a"}, r"sources\.src\.prompt: a\.txt is text without keys"),
        ({"messages": "turns"}, r"sources\.src\.messages: a\.txt is text without keys"),
    ],
)
def test_keys_for_text_files_are_refused(tmp_path, keys, message):
    (tmp_path / "a.txt").write_text("hello")
    _refused(tmp_path, {"files": "a.txt"} | keys, message)
    (tmp_path / "b.jsonl").write_text('{"body": "x", "q": "y", "a": "z", "turns": []}\n')
    both = {"files": "b.jsonl", "valid_files": "a.txt"} | keys
    if "text" in keys:  # the key of those files that have some
        assert [row["text"] for row in read(tmp_path, both)[0]] == ["x", "hello"]
    else:
        _refused(tmp_path, both, message)
