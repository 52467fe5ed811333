import functools
import gzip
import http.server
import json
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from read_sources import inputs_of, read

from fastmix_data.errors import InputError
from pipelines.reading.bad_text import DocumentCounts

TEXTS = [f"document {number}: naïve café 🤦🏽‍♀️\nline two\r\n" * (number % 7 + 1) for number in range(60)]


def _json_lines(texts, key="text"):
    return b"".join(json.dumps({"id": i, key: text}, ensure_ascii=i % 2 == 0).encode() + b"\n" for i, text in enumerate(texts))


def _write(folder, form, texts=TEXTS):
    lines = _json_lines(texts)
    if form == "jsonl":
        (folder / "a.jsonl").write_bytes(lines)
    elif form == "jsonl.gz":  # two members
        half = lines.index(b"\n", len(lines) // 2) + 1
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines[:half]) + gzip.compress(lines[half:]))
    elif form == "jsonl.zst":  # two frames
        compress = zstandard.ZstdCompressor().compress
        (folder / "a.jsonl.zst").write_bytes(compress(lines[:1000]) + compress(lines[1000:]))
    elif form == "parquet":
        pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), folder / "a.parquet", row_group_size=7)
    else:
        for number, text in enumerate(texts):
            (folder / f"{number:04d}.txt").write_bytes(text.encode())
    return {"files": "*.txt" if form == "txt" else f"a.{form}"}


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt"])
@pytest.mark.parametrize("batch_bytes", [1 << 20, 500])
def test_every_format_gives_the_same_documents(tmp_path, form, batch_bytes):
    rows, counts, _ = read(tmp_path, _write(tmp_path, form), batch_bytes=batch_bytes)
    assert [row["text"] for row in rows] == TEXTS
    assert counts == DocumentCounts()
    expected = {"parquet": "row 59", "txt": "file"}.get(form, "line 60")
    assert rows[-1]["locator"] == expected
    assert rows[-1]["file"] == ("0059.txt" if form == "txt" else f"a.{form}")


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=30),
    max_partition_bytes=st.integers(1, 400),
    final_newline=st.booleans(),
)
def test_byte_ranges_of_plain_jsonl_lose_and_repeat_nothing(tmp_path_factory, texts, max_partition_bytes, final_newline):
    folder = tmp_path_factory.mktemp("ranges")
    content = _json_lines(texts)
    (folder / "a.jsonl").write_bytes(content if final_newline else content[:-1])
    rows, _, num_partitions = read(folder, {"files": "a.jsonl"}, max_partition_bytes=max_partition_bytes)
    assert [row["text"] for row in rows] == texts
    assert num_partitions == -(-(folder / "a.jsonl").stat().st_size // max_partition_bytes)
    for row in rows if num_partitions > 1 else ():
        start = int(row["locator"].removeprefix("byte "))
        assert json.loads(content[start:].split(b"\n")[0])["text"] == row["text"]


def test_parquet_is_cut_at_row_groups_and_text_files_are_grouped(tmp_path):
    source = _write(tmp_path, "parquet")
    rows, _, num_partitions = read(tmp_path, source, max_partition_bytes=1500)
    assert [row["text"] for row in rows] == TEXTS and 1 < num_partitions <= 9
    assert [row["locator"] for row in rows] == [f"row {number}" for number in range(60)]
    rows, _, num_partitions = read(tmp_path, _write(tmp_path, "txt"), max_partition_bytes=1500)
    assert [row["text"] for row in rows] == TEXTS and 1 < num_partitions < 60


def test_a_folder_is_read_whole_and_says_what_it_passes_over(tmp_path):
    (tmp_path / "docs").mkdir()
    _write(tmp_path / "docs", "txt")
    (tmp_path / "docs" / "notes.md").write_text("x")
    inputs = inputs_of(tmp_path, {"files": "docs"})
    assert len(inputs.files) == 60
    assert "1 files in 'docs'" in inputs.warnings[0]


def test_pairs_have_two_columns_and_may_lack_a_prompt(tmp_path):
    records = [{"q": "a", "a": "b"}, {"q": "", "a": "c"}, {"q": "d", "a": ""}, {"q": None, "a": "e"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows, counts, _ = read(tmp_path, {"files": "a.jsonl", "prompt": "q", "completion": "a"})
    assert [(row["prompt"], row["completion"], row["locator"]) for row in rows] == [
        ("a", "b", "line 1"), ("", "c", "line 2"), ("", "e", "line 4"),
    ]  # fmt: skip
    assert counts.num_empty == 1


def test_empty_and_null_texts_are_counted_blank_lines_and_bom_are_not(tmp_path):
    content = b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": ""}\n{"text": null}\n  \n{"text": "b"}'
    (tmp_path / "a.jsonl").write_bytes(content)
    rows, counts, _ = read(tmp_path, {"files": "a.jsonl"})
    assert [(row["text"], row["locator"]) for row in rows] == [("a", "line 1"), ("b", "line 6")]
    assert counts == DocumentCounts(num_empty=2)
    pq.write_table(pa.table({"text": ["a", None, "", "b"]}), tmp_path / "a.parquet")
    rows, counts, _ = read(tmp_path, {"files": "a.parquet"})
    assert [(row["text"], row["locator"]) for row in rows] == [("a", "row 0"), ("b", "row 3")]
    assert counts == DocumentCounts(num_empty=2)


@pytest.mark.parametrize("form", ["jsonl", "parquet", "txt"])
def test_broken_utf8_is_replaced_and_counted_or_refused(tmp_path, form):
    bad = b"caf\xe9"
    if form == "jsonl":
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "' + bad + b'"}\n{"text": "half \\ud800"}\n')
    elif form == "parquet":
        pq.write_table(pa.table({"text": pa.array([b"fine", bad, b"half \xff"], pa.binary())}), tmp_path / "a.parquet")
    else:
        for name, content in (("a", b"fine"), ("b", bad), ("c", b"one\nhalf \xff")):
            (tmp_path / f"{name}.txt").write_bytes(content)
    source = {"files": f"*.{form}"}
    rows, counts, _ = read(tmp_path, source)
    assert [row["text"].splitlines()[-1] for row in rows] == ["fine", "caf\ufffd", "half \ufffd"]
    assert counts.num_bad_text == 2
    where = {"jsonl": r"a\.jsonl: line 2", "parquet": r"a\.parquet: row 1", "txt": r"b\.txt: line 1"}[form]
    with pytest.raises(InputError, match=where + r".*on_bad_text: replace"):
        read(tmp_path, source | {"on_bad_text": "refuse"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"line 17: not valid JSON .*fix or remove the line"),
        (b'["a"]', r"line 17: holds a JSON array"),
        (b'{"body": "a", "id": 1}', r"line 17: has no 'text'; the keys there are body, id"),
        (b'{"text": 3}', r"line 17: 'text' holds a JSON number, not text"),
    ],
)
@pytest.mark.parametrize("max_partition_bytes", [1 << 20, 100])
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, message, max_partition_bytes):
    good = [b'{"text": "some text"}'] * 16
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*good, line, *good]))
    with pytest.raises(InputError, match=r"a\.jsonl: " + message) as caught:
        read(tmp_path, {"files": "a.jsonl"}, max_partition_bytes=max_partition_bytes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["jsonl.gz", "jsonl.zst"])
def test_truncated_or_damaged_compression_is_one_clear_error(tmp_path, form):
    source = _write(tmp_path, form)
    path = tmp_path / source["files"]
    content = path.read_bytes()
    for size in (len(content) - 3, len(content) // 2, 5):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"cut short.*again"):
            read(tmp_path, source)
    path.write_bytes(b"this is not compressed at all")
    with pytest.raises(InputError, match=r"damaged.*again"):
        read(tmp_path, source)


def test_trailing_zeros_after_gzip_are_allowed(tmp_path):
    source = _write(tmp_path, "jsonl.gz")
    path = tmp_path / source["files"]
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    assert len(read(tmp_path, source)[0]) == 60


@pytest.mark.parametrize("streamed", [False, True])
def test_datasets_are_read_from_a_saved_folder_and_from_a_data_folder(tmp_path, streamed):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "data"
    if streamed:
        folder.mkdir()
        for part in range(2):
            (folder / f"train-{part}.jsonl").write_bytes(_json_lines(TEXTS[part * 30 : part * 30 + 30]))
    else:
        datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS, "id": range(60)})}).save_to_disk(folder)
    rows, _, num_partitions = read(tmp_path, {"dataset": "data"}, max_partition_bytes=3000)
    assert [row["text"] for row in rows] == TEXTS
    assert num_partitions > 1
    with pytest.raises(InputError, match=r"has no 'body'; the keys there are id, text"):
        read(tmp_path, {"dataset": "data", "text": "body"})
    with pytest.raises(InputError, match=r"sources\.src\.dataset: 'data' cannot be read"):
        read(tmp_path, {"dataset": "data", "dataset_split": "nosuch"})


@pytest.mark.parametrize("form", ["jsonl", "jsonl.zst", "parquet", "txt"])
def test_urls_are_read_through_fsspec(tmp_path, form):
    source = _write(tmp_path, form)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), f"/corpus-{form}", recursive=True)
    rows, _, num_partitions = read(tmp_path, {"files": f"memory://corpus-{form}/{source['files']}"}, max_partition_bytes=2000)
    assert [row["text"] for row in rows] == TEXTS
    assert num_partitions > 1 or form == "jsonl.zst"
    with pytest.raises(InputError, match=r"nothing is at 'memory://corpus-none/a\.jsonl'"):
        read(tmp_path, {"files": "memory://corpus-none/a.jsonl"})


def test_http_urls_areread(tmp_path):
    pytest.importorskip("aiohttp")
    _write(tmp_path, "jsonl.gz")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert [row["text"] for row in read(tmp_path, {"files": f"{address}/a.jsonl.gz"})[0]] == TEXTS
        with pytest.raises(InputError, match="nothing is at"):
            read(tmp_path, {"files": f"{address}/b.jsonl.gz"})
        server.shutdown()
