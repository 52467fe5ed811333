"""The first records of a file are those that preprocessing reads."""

import pytest
import zstandard
from read_sources import inputs_of, read, write_records

from fastmix_data.errors import InputError
from pipelines.init_recipe import propose_recipe
from pipelines.reading.first_records import first_records

RECORDS = [{"id": number, "text": f"naïve {number}", "turns": [{"role": "user", "n": None}]} for number in range(5)]


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_the_first_records_of_every_format_are_the_same(tmp_path, form, limit):
    (file,) = inputs_of(tmp_path, write_records(tmp_path, form, RECORDS)).files
    assert first_records(file, limit) == RECORDS[:limit]


def test_bad_lines_are_passed_over_while_there_are_records(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf\n{oops\n[1]\n{"text": "caf\xe9"}\n' + b'{"x": ' + b"[" * 3000 + b"]" * 3000 + b"}"
    )
    (file,) = inputs_of(tmp_path, {"files": "a.jsonl"}).files
    assert first_records(file, 9) == [{"text": "caf\ufffd"}]
    with pytest.raises(InputError, match=r"a\.jsonl: line 2: not valid JSON"):
        first_records(file, 2)


def test_what_preprocessing_reads_init_understands(tmp_path):
    """A zstd frame that refers far back, as `zstd --long=31` writes it."""
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True, write_content_size=False)
    lines = b'{"body": "some text", "id": 1}\n' * 3
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor(compression_params=parameters).compress(lines))
    assert len(read(tmp_path, {"files": "a.jsonl.zst", "text": "body"})[0]) == 3
    assert "text: body" in propose_recipe(tmp_path)
