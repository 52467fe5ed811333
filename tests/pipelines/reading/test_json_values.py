"""An array, or values over several lines, become one record a line, whatever stands in their texts and wherever a piece ends."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmix_data.errors import InputError
from pipelines.reading.json_values import records_as_lines

_TEXT = st.text(alphabet=st.sampled_from('ab"\\/{}[],:\n\té🤦 '), max_size=12)
_VALUE = st.recursive(
    _TEXT | st.integers() | st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3)
)


@settings(max_examples=200, deadline=None)
@given(
    records=st.lists(st.dictionaries(_TEXT, _VALUE, max_size=4), max_size=5),
    is_array=st.booleans(),
    indent=st.sampled_from([None, 0, 2]),
    piece=st.integers(1, 40),
    is_ascii=st.booleans(),
)
def test_records_come_back_one_a_line(records, is_array, indent, piece, is_ascii):
    dumped = [json.dumps(record, indent=indent, ensure_ascii=is_ascii) for record in records]
    text = json.dumps(records, indent=indent, ensure_ascii=is_ascii) if is_array else "\n".join(dumped)
    content = text.replace("\n", "\r\n").encode()
    pieces = (content[start : start + piece] for start in range(0, len(content), piece))
    lines = b"".join(records_as_lines(pieces, name="a.json", is_array=is_array)).splitlines()
    assert [json.loads(line) for line in lines if line.strip()] == records
    # The number of a line is that of its record.
    assert all(line.strip() for line in lines[: len(records)])


@pytest.mark.parametrize("content", [b'[{"a": 1}', b'[{"a": "b', b'[{"a": "b\\', b"["])
def test_an_array_that_ends_too_early_is_said_to(content):
    with pytest.raises(InputError, match=r"a\.json: the JSON array is cut short; write or download the file again"):
        list(records_as_lines(iter([content]), name="a.json", is_array=True))


def test_arrays_one_after_the_other_are_all_read():
    lines = b"".join(records_as_lines(iter([b'[{"a": 1}, {"a": 2}]\n[{"a": 3}]']), name="a", is_array=True)).splitlines()
    assert [json.loads(line)["a"] for line in lines if line.strip()] == [1, 2, 3]
