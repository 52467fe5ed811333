"""The commands with shards that lie in S3 only: the same answers, and one line where something is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from installed_command import fastmix, read_recipe, write_corpus, write_recipe

from fastmix_data.remote import shard_store
from tests.local_s3 import local_s3


def test_a_search_from_s3_finds_what_one_from_the_disk_does_and_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path)
    recipe = read_recipe(tmp_path)
    recipe["training"]["token_budget"] = "2K"
    recipe["search"] |= {"trial_fraction": 0, "eval_sequences": 4}
    write_recipe(tmp_path, recipe)
    fastmix("preprocess", "recipe.yaml", cwd=tmp_path)
    fastmix("search", "recipe.yaml", cwd=tmp_path)
    mixture = tmp_path / "run" / "search" / "mixture.json"
    expected = json.loads(mixture.read_text())["weights"]
    with local_s3() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        shards = tmp_path / "run" / "shards"
        server.upload(shards, "corpora", "here")
        kept = next((path.relative_to(shards), path.stat().st_size) for path in sorted(shards.rglob("*.tar")))
        shutil.rmtree(shards)

        def search(shards: str, *options: str, code: int = 0) -> str:
            shard_store._opened.cache_clear()
            write_recipe(tmp_path, {**recipe, "storage": {"shards": shards, "cache": "cache", "cache_bytes": "8MiB"}})
            return fastmix("search", "recipe.yaml", "--replace", *options, cwd=tmp_path, code=code).output

        assert "s3://nowhere/here: there is no such bucket or folder; check storage.shards" in search("s3://nowhere/here", code=2)
        assert "there is no such object, which the catalog names; copy WORKDIR/shards" in search("s3://corpora/else", code=2)
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
            assert "access is denied; check the credentials" in search("s3://corpora/here", code=2)
        for _ in range(2):
            server.paths.clear()
            search("s3://corpora/here")
            assert json.loads(mixture.read_text())["weights"] == expected
        assert not server.paths  # the second search had all from the cache
        # What was copied away need not be made again.
        assert "nothing to do" in fastmix("preprocess", "recipe.yaml", cwd=tmp_path).output
        verify = ["verify", "run", "--store", "s3://corpora/here"]
        assert "all as recorded" in fastmix(*verify, cwd=tmp_path).output
        first, size = kept
        server.put("corpora", f"here/{first}", bytes(size))  # of the same size, as a shard of other data may be
        said = fastmix(*verify, cwd=tmp_path, code=2).output
        assert (
            f"1 problem\ns3://corpora/here/{first}: the shard's sha256 is" in said and "copy WORKDIR/shards there again" in said
        )
