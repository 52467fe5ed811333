"""Bad records in a whole run: counted, said once, kept in the workdir, and no reason to do again what is done."""

import json
import re

import pytest
from small_corpora import bytes_of, json_lines, run, texts

from fastmix_data.errors import InputError

BAD = b'{"text": 3}\n'


def _sources(mode, **changes):
    return {"a": {"files": "a.jsonl"}, "b": {"files": "b.jsonl", "valid_files": "v.jsonl", "on_bad_record": mode} | changes}


@pytest.fixture
def bad(small, tmp_path):
    """A source and a target with bad records, in training files, held-out files and target files."""
    good = json_lines(texts("b", 2000, 200))  # further than planning looks
    (tmp_path / "b.jsonl").write_bytes(good + BAD + b"{oops\n" + good)
    (tmp_path / "v.jsonl").write_bytes(json_lines(texts("v", 60)) + BAD)
    (tmp_path / "t.jsonl").write_bytes(json_lines(texts("t", 60)) + BAD)

    def recipe(mode, **changes):
        target = {"files": {"t": {"files": "t.jsonl", "on_bad_record": mode}}}
        return small(sources=_sources(mode, **changes), target=target)

    return recipe


def test_bad_records_are_counted_said_once_for_each_source_and_kept(bad):
    recipe = bad("quarantine")
    result, workdir = run(recipe), recipe.paths.root
    statistics = result.catalog.info.statistics
    assert {name: counts["num_bad_records"] for name, counts in statistics.items()} == {"a": 0, "b": 3, "t": 1}
    said = [warning for warning in result.warnings if "bad records" in warning]
    assert [re.split(r": |; the first is ", warning)[:2] for warning in said] == [
        ["sources.b", f"3 bad records were left out and kept in {workdir / 'quarantine'}"],
        ["target.files.t", f"1 bad records were left out and kept in {workdir / 'quarantine'}"],
    ]
    kept = {path.stem: [json.loads(line) for line in path.open("rb")] for path in (workdir / "quarantine").iterdir()}
    assert {name: [entry["raw"] for entry in entries] for name, entries in kept.items()} == {
        "b-train-000000": ['{"text": 3}', "{oops"], "b-valid-000000": ['{"text": 3}'], "t-valid-000000": ['{"text": 3}'],
    }  # fmt: skip
    assert kept["b-train-000000"][0]["locator"] == "line 2001"
    before = bytes_of(workdir)
    assert not run(recipe).did_work
    # What a partition kept is part of what it made: without it, that partition alone is done again.
    (workdir / "quarantine" / "b-valid-000000.jsonl").unlink()
    (workdir / "quarantine" / "b-train-000009.jsonl").write_text("left over")
    assert run(recipe).did_work and bytes_of(workdir) == before


def test_a_run_that_a_bad_record_stopped_goes_on_with_another_way_and_does_only_what_is_missing(bad):
    recipe = bad("fail")
    with pytest.raises(InputError, match=r"jsonl: line \d+: .*set on_bad_record: skip or quarantine"):
        run(recipe)
    assert not recipe.paths.catalog.exists()

    def done():
        return {path.name: path.stat().st_mtime_ns for path in recipe.paths.receipts.glob("*.json")}

    first = done()
    skipped = run(bad("skip"))
    assert first.items() <= done().items() and not recipe.paths.quarantine.exists()
    assert any(warning.startswith("sources.b: 3 bad records were left out; the first is") for warning in skipped.warnings)
    # To keep what was left out, only the partitions with bad records are read again; the tokens are the same.
    second = done()
    kept = run(bad("quarantine"))
    assert kept.did_work and len(list(recipe.paths.quarantine.iterdir())) == 3
    assert {name for name, time in done().items() if second[name] == time} == {"a-both-000000.json"}
    assert kept.catalog.rows == skipped.catalog.rows
    # And back: what no receipt speaks of is removed.
    run(bad("skip"))
    assert not list(recipe.paths.quarantine.iterdir())


@pytest.mark.parametrize("mode", ["skip", "quarantine"])
def test_a_source_or_target_of_bad_records_alone_is_refused(small, tmp_path, mode):
    (tmp_path / "b.jsonl").write_bytes(BAD * 20)
    message = r"all of its 20 records are bad, the first is b\.jsonl, line 1: 'text' holds a JSON number.*; name the key"
    with pytest.raises(InputError, match=r"^sources\.b: " + message):
        run(small(sources={"a": {"files": "a.jsonl"}, "b": {"files": "b.jsonl", "on_bad_record": mode}}))
    target = {"files": {"t": {"files": "b.jsonl", "on_bad_record": mode}}}
    with pytest.raises(InputError, match=r"^target\.files\.t: " + message):
        run(small(sources={"a": {"files": "a.jsonl"}}, target=target), replace=True)
