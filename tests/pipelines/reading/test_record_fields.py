"""Keys, paths and templates: what each gives for a record, the same in every format."""

import json
import re
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from read_sources import FORMS, read, write_records

from fastmix_data.errors import InputError
from fastmix_data.recipe.fields import parse_field
from pipelines.reading.bad_records import BadRecord
from pipelines.reading.record_fields import resolve_field

ARC = {"question": "Which?", "choices": {"text": ["sun", "moon"], "label": ["A", "B"]}, "answerKey": "B"}
SQUAD = {"context": "It is blue.", "answers": {"text": ["blue", "is blue"], "answer_start": [6, 3]}}
ALPACA = "{instruction}\n\n{input}\n\n### Response:"


@pytest.mark.parametrize(
    ("record", "field", "text"),
    [
        ({"a.b": "literal", "a": {"b": "nested"}}, "a.b", "literal"),
        ({"a": {"b": "nested"}}, "a.b", "nested"),
        ({"a[*]": "literal", "a": ["x"]}, "a[*]", "literal"),
        (SQUAD, "answers.text[0]", "blue"),
        (SQUAD, "answers.text[-1]", "is blue"),
        ({"answers": {"text": []}}, "answers.text[0]", ""),
        ({"answers": None}, "answers.text[0]", ""),
        ({"messages": [{"content": "a"}, {"content": ""}, {"content": None}, {"content": "b"}]}, "messages[*].content", "a\n\n\nb"),
        ({"a": [{"b": ["x", "y"]}, {"b": None}, {"b": ["z"]}]}, "a[*].b[*]", "x\ny\nz"),
        ({"instruction": "Do", "input": "it"}, ALPACA, "Do\n\nit\n\n### Response:"),
        ({"instruction": "Do", "input": ""}, ALPACA, "Do\n\n### Response:"),
        ({"instruction": "", "input": "it"}, ALPACA, "it\n\n### Response:"),
        ({"instruction": "Do", "input": None}, "{instruction}\n{input}", "Do"),
        ({"instruction": "Do"}, "{instruction}\n{input?}", "Do"),
        ({"instruction": "Do", "input": "two\n\nlines\n"}, "{instruction}\nInput: {input}", "Do\nInput: two\n\nlines\n"),
        ({"instruction": "Do", "input": ""}, "{instruction}\nInput: {input}", "Do"),
        ({"a": "", "b": "x"}, "{a}{b}", "x"),
        ({"a": ""}, "{a}", ""),
        (ARC, "{question}\n{choices.label[*]}. {choices.text[*]}\nAnswer:", "Which?\nA. sun\nB. moon\nAnswer:"),
        (ARC, "{question} {choices.text[*]}", "Which? sun\nWhich? moon"),
        ({"n": 3, "x": 0.5, "is": True, "big": 10**20, "d": Decimal("1.50")}, "{n} {x} {is} {big} {d}", f"3 0.5 true {10**20} 1.50"),
        ({"a": "{b}"}, "{{{a}}}", "{{b}}"),
    ],
)  # fmt: skip
def test_a_field_gives_the_text_of_a_record(record, field, text):
    assert resolve_field(record, parse_field(field)) == text


@pytest.mark.parametrize(
    ("record", "field", "message"),
    [
        ({"b": "x", "a": {"c": "y"}}, "a.b", r"has no 'a\.b'; the keys there are c"),
        ({"b": "x"}, "{a}\n{b}", r"has no 'a'; the keys there are b"),
        ({"a": "x"}, "a.b", r"'a\.b' leads through a JSON string, which has no key 'b'"),
        ({"a": {"b": 1}}, "a[0]", r"'a\[0\]' leads through a JSON object, which has no \[0\]"),
        ({"a": 3}, "a", r"'a' holds a JSON number, not text.*the template \"{a}\" reads it as text"),
        ({"a": ["x"]}, "a", r"'a' holds a JSON array, not text.*all of it is a\[\*\]"),
        ({"a": ["x", 3]}, "a[*]", r"'a\[\*\]' holds a JSON number, not text"),
        ({"a": ["x"]}, "{a}", r"'a' holds a JSON array, which a template cannot take.*as a\[\*\]"),
        ({"a": ["x"], "b": []}, "{a[*]} {b[*]}", r"lists on one line of a template differ in length: 'a\[\*\]' has 1, 'b\[\*\]' has 0"),
    ],
)  # fmt: skip
def test_a_record_without_the_field_says_what_it_has(record, field, message):
    with pytest.raises(BadRecord) as caught:
        resolve_field(record, parse_field(field))
    assert re.search(message, f"{caught.value.problem}; {caught.value.remedy}")


RECORDS = [
    ARC | SQUAD | {"id": 1, "note": ""},
    ARC | {"context": "naïve", "answers": {"text": ["x"], "answer_start": [0]}, "id": 2, "note": "n"},
    ARC | {"context": "c", "answers": {"text": [], "answer_start": []}, "id": 3, "note": None},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_bytes", [1 << 20, 300])
def test_every_format_gives_the_same_texts_of_paths_and_templates(tmp_path, form, batch_bytes):
    origin = write_records(tmp_path, form, RECORDS)
    keys = {"prompt": "{id}: {context}\n{note}\n{choices.label[*]}. {choices.text[*]}", "completion": "answers.text[0]"}
    rows, counts, _ = read(tmp_path, origin | keys, batch_bytes=batch_bytes)
    choices = "A. sun\nB. moon"
    assert [(row["prompt"], row["completion"]) for row in rows] == [
        (f"1: It is blue.\n{choices}", "blue"),
        (f"2: naïve\nn\n{choices}", "x"),
    ]
    assert counts.num_empty == 1
    with pytest.raises(InputError, match=r"has no 'choices\.letters\[\*\]'; the keys there are label, text") as caught:
        read(tmp_path, origin | {"text": "choices.letters[*]"})
    assert "\n" not in str(caught.value)


def test_a_column_whose_name_has_dots_is_meant_before_a_path(tmp_path):
    pq.write_table(pa.table({"a.b": ["literal"], "a": [{"b": "nested"}]}), tmp_path / "a.parquet")
    assert read(tmp_path, {"files": "a.parquet", "text": "a.b"})[0][0]["text"] == "literal"


def test_whole_numbers_beyond_64_bits_keep_their_digits(tmp_path):
    number = "123456789012345678901234567890"
    (tmp_path / "a.jsonl").write_text(f'{{"id": {number}, "x": 1e300, "f": 2.50}}\n')
    assert read(tmp_path, {"files": "a.jsonl", "text": "{id} {x} {f}"})[0][0]["text"] == f"{number} 1e300 2.5"


@settings(max_examples=60, deadline=None)
@given(
    records=st.lists(
        st.fixed_dictionaries({
            "a": st.none() | st.text(max_size=5),
            "n": st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans(),
            "l": st.lists(st.none() | st.text(max_size=3), max_size=3),
        }),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_the_fast_and_the_careful_way_give_the_same_texts(tmp_path_factory, records):
    """A line that the fast way stumbles over sends all lines of its piece the careful way."""
    folder = tmp_path_factory.mktemp("ways")
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "fast.jsonl").write_text(lines)
    (folder / "careful.jsonl").write_text(lines + "\n{oops\n")
    for keys in ({"text": "{n} {a}\n\n- {l[*]}"}, {"text": "l[*]"}, {"prompt": "a", "completion": "{n}"}):
        (fast, fast_counts, _), (careful, careful_counts, _) = (
            read(folder, {"files": f"{name}.jsonl", "on_bad_record": "skip"} | keys) for name in ("fast", "careful")
        )
        assert [row | {"file": ""} for row in fast] == [row | {"file": ""} for row in careful]
        assert (fast_counts.num_empty, careful_counts.num_bad_records) == (careful_counts.num_empty, 1)
