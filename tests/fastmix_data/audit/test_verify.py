from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmix_data.atomic_files import hash_of, read_json, write_json, write_parquet
from fastmix_data.audit.verify import VerifyReport, verify
from fastmix_data.errors import InputError
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.recipe.recipe import EmitSection
from fastmix_data.results.mixture import Mixture, Origin, save_mixture
from fastmix_data.shards.catalog import Catalog

MakeCatalog = Callable[..., Catalog]


@pytest.fixture
def catalog(make_catalog: MakeCatalog) -> Catalog:
    catalog = make_catalog({"books": [410, 333], "code": [2000]}, masked=("code",))
    mixture = Mixture(weights={"books": 0.4, "code": 0.6}, made_from=Origin(catalog=catalog.fingerprint))
    save_mixture(catalog.root / "search" / "mixture.json", mixture)
    emit_manifest(catalog, mixture, emit=EmitSection(token_budget=3000), directory=catalog.root / "manifest")
    return catalog


def _verify(path: Path) -> VerifyReport:
    return verify(path, quiet=True)


def test_a_whole_workdir_is_as_recorded(catalog: Catalog) -> None:
    report = _verify(catalog.root)
    assert report.ok and report.kind == "workdir" and report.num_shards == len(catalog.rows)
    assert "checked catalog, mixture, manifest and" in str(report) and "all as recorded" in str(report)
    assert json.loads(json.dumps(report.as_dict()))["ok"]
    for path in ("catalog.parquet", "manifest", "manifest/manifest.json", "search/mixture.json", catalog.rows[0].path):
        assert _verify(catalog.root / path).ok


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
def test_any_changed_byte_of_a_shard_is_found(catalog: Catalog, data: st.DataObject) -> None:
    row = data.draw(st.sampled_from([row for row in catalog.rows if row.split == "train"]))
    path = catalog.root / row.path
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[position] ^ data.draw(st.integers(1, 255))
    path.write_bytes(whole[:position] + bytes([flipped]) + whole[position + 1 :])
    try:
        for target in (catalog.root, catalog.root / "catalog.parquet", path):
            report = _verify(target)
            assert any(problem.where.endswith(row.path) for problem in report.problems)
    finally:
        path.write_bytes(whole)


def test_every_problem_is_listed_with_a_remedy(catalog: Catalog) -> None:
    missing, short, changed = (catalog.root / row.path for row in catalog.rows[:3])
    missing.unlink()
    short.write_bytes(short.read_bytes()[:-100])
    changed.write_bytes(changed.read_bytes().replace(b"tokens", b"Tokens", 1))
    report = _verify(catalog.root)
    found = {Path(problem.where).name: problem.what for problem in report.problems}
    assert found[missing.name] == "the shard is missing"
    assert "bytes, recorded are" in found[short.name]
    assert "sha256" in found[changed.name]
    assert len(report.problems) == 3 and all("fastmix preprocess" in problem.remedy for problem in report.problems)
    assert len(str(report).splitlines()) == 4 and "3 problems" in str(report)


def test_a_shard_without_a_catalog_is_checked_member_by_member(catalog: Catalog, tmp_path: Path) -> None:
    whole = (catalog.root / next(row for row in catalog.rows if row.num_blocks > 2).path).read_bytes()
    alone = tmp_path / "alone.tar"
    alone.write_bytes(whole)
    assert _verify(alone).ok
    header = whole.index(b"0000000001.tokens")
    alone.write_bytes(whole[:header] + b"0000000009" + whole[header + 10 :])  # the header's checksum no longer fits
    assert "is not where its stride puts it" in str(_verify(alone))
    alone.write_bytes(whole[:1000])
    assert not _verify(alone).ok


def test_any_damage_to_names_and_array_headers_is_reported_not_raised(catalog: Catalog, tmp_path: Path) -> None:
    row = next(row for row in catalog.rows if row.num_blocks > 2)
    whole = (catalog.root / row.path).read_bytes()
    alone = tmp_path / "alone.tar"
    stride = catalog.layout(row).stride
    for start in (0, 124, 512, 550, stride, stride + 124):  # names, sizes and array headers of the first two samples
        for position in range(start, start + 12):
            alone.write_bytes(whole[:position] + bytes([whole[position] ^ 0x80]) + whole[position + 1 :])
            assert not _verify(alone).ok


def test_a_truncated_manifest_is_found(catalog: Catalog) -> None:
    path = catalog.root / "manifest" / "manifest.json"
    path.write_bytes(path.read_bytes()[:-50])
    for target in (path, path.parent, catalog.root):
        report = _verify(target)
        assert [problem.where for problem in report.problems] == [str(path)] and "not valid JSON" in str(report)


def test_truncated_and_missing_parts_are_found(catalog: Catalog) -> None:
    parts = catalog.root / "manifest" / "parts.parquet"
    parts.write_bytes(parts.read_bytes()[:-50])
    assert "does not have the hash that manifest.json records; run `fastmix emit` again" in str(_verify(parts.parent))
    parts.unlink()
    assert "is missing" in str(_verify(catalog.root))


def test_a_manifest_whose_numbers_do_not_add_up_is_found_even_with_right_hashes(catalog: Catalog) -> None:
    path = catalog.root / "manifest" / "manifest.json"
    content = read_json(path)
    content["sources"][0]["num_tokens"] += 1
    content["num_tokens"] += 1
    del content["sha256"]
    write_json(path, {**content, "sha256": hash_of(content)})
    report = _verify(path)
    assert [problem.remedy for problem in report.problems] == ["run `fastmix emit --replace`"] * 2


def test_manifest_and_mixture_of_another_catalog_are_found(catalog: Catalog, make_catalog: MakeCatalog) -> None:
    make_catalog({"books": [411, 333], "code": [2000]}, masked=("code",))
    text = str(_verify(catalog.root))
    assert "mixture.json: was searched on another catalog" in text and "manifest.json: was made from another catalog" in text


def test_a_damaged_or_contradictory_catalog_is_found(catalog: Catalog) -> None:
    path = catalog.root / "catalog.parquet"
    table = pq.read_table(path)
    tokens = table["num_tokens"].to_pylist()
    columns = table.set_column(
        table.schema.get_field_index("num_tokens"), table.schema.field("num_tokens"), [[10**6, *tokens[1:]]]
    )
    write_parquet(path, columns)
    assert "contradicts itself" in str(_verify(path))
    path.write_bytes(b"PAR1" * 3)
    assert "not a fastmix catalog" in str(_verify(path))


def test_another_tokenizer_is_found(catalog: Catalog) -> None:
    path = catalog.root / "tokenizer" / "tokenizer.json"
    path.parent.mkdir()
    path.write_text("{}")
    assert "is not the tokenizer that the shards were made with" in str(_verify(catalog.root))


def test_what_is_no_artefact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        verify(tmp_path / "nothing")
    with pytest.raises(InputError, match="not an artefact of fastmix; give a shard"):
        verify(tmp_path)
