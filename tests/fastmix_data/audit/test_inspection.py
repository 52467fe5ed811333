from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fastmix_data.atomic_files import sha256_of_file, write_parquet
from fastmix_data.audit.inspection import format_inspection, inspect
from fastmix_data.errors import InputError
from fastmix_data.manifest.emit import emit_manifest
from fastmix_data.recipe.recipe import EmitSection
from fastmix_data.results.mixture import Certainty, Mixture, SearchRecord, save_mixture
from fastmix_data.shards.catalog import Catalog, CatalogInfo
from fastmix_data.shards.shard_format import ShardLayout
from fastmix_data.shards.shard_writer import ShardNames, ShardStream
from fastmix_data.tokens.tokenizer import END_OF_TEXT, byte_tokenizer, describe_tokenizer, load_tokenizer

MakeCatalog = Callable[..., Catalog]
BLOCK = 32
TEXTS = {
    0: ["one short text", "b" * 200, "", "grüße", "x" * 31, "y" * 32, "z" * 33, "tail"],
    1: ["second partition", "with \x1b[31mcolour\x1b[0m codes", "c" * 100],
}


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """Two partitions of texts as bytes, three blocks a shard, with documents tables as preprocessing writes them."""
    root = tmp_path / "run"
    path = root / "tokenizer" / "tokenizer.json"
    path.parent.mkdir(parents=True)
    path.write_text(byte_tokenizer())
    info, tokenizer = describe_tokenizer(path), load_tokenizer(path)
    layout, rows = ShardLayout(BLOCK, np.dtype("<u2")), []
    for partition, texts in TEXTS.items():
        names = ShardNames(root, "books", "train", partition)
        stream = ShardStream(names, layout=layout, max_shard_bytes=layout.num_bytes(3), eos_id=info.eos_id)
        table: dict[str, list[object]] = {name: [] for name in ("shard", "block", "offset", "locator", "num_tokens", "text_hash")}
        for number, text in enumerate(texts):
            ids = np.array([*tokenizer.encode(text).ids, info.eos_id], "<u2")
            shard, block, offset = stream.append(ids, starts_D=np.array([0]))
            values = (names.path(int(shard[0])), int(block[0]), int(offset[0]), f"{number}", len(ids), number)
            for name, value in zip(table, values, strict=True):
                table[name].append(value)
        rows += stream.close()
        num = len(texts)
        constant = {"source": ["books"] * num, "split": ["train"] * num, "file": [f"part{partition}.txt"] * num}
        columns = {**{name: pa.array(values).dictionary_encode() for name, values in constant.items()}, **table}
        columns["shard"] = pa.array(table["shard"]).dictionary_encode()
        columns["num_prompt_tokens"] = [0] * num
        write_parquet(root / "documents" / f"books-{partition}.parquet", pa.table(columns))
    catalog = Catalog(root, CatalogInfo(BLOCK, info.vocab_size, info.eos_id, sha256_of_file(path), sources=("books",)), rows)
    catalog.save(root / "catalog.parquet")
    return root


def test_text_and_documents_of_every_block_are_those_of_the_input(workdir: Path) -> None:
    tokenizer = load_tokenizer(workdir / "tokenizer" / "tokenizer.json")
    eos = tokenizer.token_to_id(END_OF_TEXT)
    for partition, texts in TEXTS.items():
        ids = [[*tokenizer.encode(text).ids, eos] for text in texts]
        owner = [str(number) for number, document in enumerate(ids) for _ in document]
        line = [token for document in ids for token in document]
        position = 0
        for path in sorted((workdir / "shards" / "books").glob(f"train-{partition:06d}-*.tar")):
            for number in range(inspect(path)["num_blocks"]):
                block = inspect(path, block=number)["block"]
                here = line[position : position + BLOCK]
                assert block["tokens"] == here and block["num_padding"] == BLOCK - len(here)
                assert block["text"] == tokenizer.decode(here, skip_special_tokens=False)
                owners = [document["locator"] for document in block["documents"]
                          for _ in range(document["first"], document["last"] + 1)]  # fmt: skip
                assert owners == owner[position : position + BLOCK]
                begun = [document["begins_before"] for document in block["documents"]]
                assert begun == [position > 0 and owner[position - 1] == owner[position], *[False] * (len(begun) - 1)]
                assert {document["file"] for document in block["documents"]} == {f"part{partition}.txt"}
                position += BLOCK
        assert position - BLOCK < len(line) <= position


def test_a_document_longer_than_a_shard_is_found_in_every_block(workdir: Path) -> None:
    path = sorted((workdir / "shards" / "books").glob("train-000000-*.tar"))[1]
    documents = inspect(path, block=0)["block"]["documents"]
    assert documents[0]["locator"] == "1" and documents[0]["begins_before"] and documents[0]["first"] == 0


def test_a_shard_is_described_for_people_without_control_characters(workdir: Path) -> None:
    path = sorted((workdir / "shards" / "books").glob("train-000001-*.tar"))[0]
    contents = [inspect(path, block=block) for block in (0, 1)]
    assert "\x1b" in "".join(content["block"]["text"] for content in contents)
    for content in contents:
        text = format_inspection(content)
        assert "\x1b" not in text
        assert "source books, split train" in text and "part1.txt" in text and f"blocks of {BLOCK} tokens (uint16)" in text


def test_a_shard_alone_is_described_by_its_tokens(workdir: Path, tmp_path: Path) -> None:
    shard = next((workdir / "shards" / "books").glob("*.tar"))
    alone = tmp_path / "alone" / "shard.tar"
    alone.parent.mkdir()
    alone.write_bytes(shard.read_bytes())
    content = inspect(alone)
    assert content["block"]["text"] is None and content["block"]["documents"] is None and len(content["block"]["tokens"]) == BLOCK
    assert "no tokenizer/tokenizer.json" in format_inspection(content)
    exported = workdir / "export" / "shard.tar"  # below the workdir, but in no catalog
    exported.parent.mkdir()
    exported.write_bytes(shard.read_bytes())
    block = inspect(exported)["block"]
    assert block["text"].startswith(inspect(shard)["block"]["text"]) and block["documents"] is None


def test_catalog_mixture_manifest_and_workdir_are_described(make_catalog: MakeCatalog) -> None:
    catalog = make_catalog({"books": [410, 333], "code": [2000]}, masked=("code",))
    mixture = Mixture(
        weights={"books": 0.8, "code": 0.2},
        method="search",
        certainty=Certainty(interval={"books": (0.7, 0.9)}),
        search=SearchRecord(num_tokens=1000),
    )
    save_mixture(catalog.root / "search" / "mixture.json", mixture)
    emit_manifest(catalog, mixture, emit=EmitSection(token_budget=2000, max_epochs=2), directory=catalog.root / "manifest")
    content = inspect(catalog.root)
    json.dumps(content)
    books = next(row for row in content["catalog"]["splits"] if (row["source"], row["split"]) == ("books", "train"))
    assert (books["num_tokens"], books["num_blocks"], books["num_shards"]) == (743, 26 + 21, 6 + 5)
    sources = content["manifest"]["sources"]
    assert sources[0]["capped"] and sources[0]["epochs"] == 2.0
    text = format_inspection(content)
    assert "743" in text and "0.7000 to 0.9000" in text and "at its cap" in text
    bar = next(line for line in text.splitlines() if line.startswith("books   0.8000"))
    assert bar.count("█") == 23 and bar.count("▓") == 4 and bar.count("░") == 3
    for path in ("catalog.parquet", "search/mixture.json", "manifest", "manifest/manifest.json"):
        assert format_inspection(inspect(catalog.root / path)) in text


def test_what_cannot_be_inspected_is_explained(workdir: Path, tmp_path: Path) -> None:
    shard = next((workdir / "shards" / "books").glob("*.tar"))
    with pytest.raises(InputError, match="has no block 99; its blocks are 0 to"):
        inspect(shard, block=99)
    with pytest.raises(InputError, match="a catalog has no blocks"):
        inspect(workdir / "catalog.parquet", block=1)
    with pytest.raises(InputError, match="no such file or folder; give a shard"):
        inspect(tmp_path / "nothing")
    with pytest.raises(InputError, match="not an artefact of fastmix"):
        inspect(tmp_path)
