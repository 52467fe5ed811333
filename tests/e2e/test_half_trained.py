"""A run in phases that changes its mixture halfway: emitted, compared, and traced back to its documents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from installed_command import fastmix

from fastmix_data.audit.trace import TracedStep, trace
from fastmix_data.errors import InputError
from fastmix_data.loader import ManifestDataset
from fastmix_data.manifest.manifest import load_manifest
from fastmix_data.manifest.order import ManifestOrder
from fastmix_data.tokens.tokenizer import load_tokenizer
from fastmix_data.workdir import Workdir

PHASES = "emit.phases=[{tokens: 40%, weights: {prose: 3, code: 1}}, {tokens: 40%, mixture: own.json}, {tokens: 6K}]"
OWN = {"weights": {"prose": 0.2, "code": 0.3, "noise": 0.5}}


@pytest.fixture(scope="module")
def phased(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose run ships in three phases, and what is left of it after 10,000 tokens."""
    copied_run = tmp_path_factory.mktemp("phased") / "copy"
    shutil.copytree(finished_run, copied_run)
    (copied_run / "own.json").write_text(json.dumps(OWN))
    said = fastmix("emit", "recipe.yaml", "--set", PHASES, "--replace", cwd=copied_run)
    assert "in 3 phases (12.0K, " in said.stderr and "phase  tokens  mixture" in said.stdout
    said = fastmix("emit", "recipe.yaml", "--mixture", "own.json", "--after", "10010", "--sequence-length", 64, cwd=copied_run)
    assert "--after 10010 is rounded to 9984, which are 156 sequences of 64" in said.stderr
    assert "after 156 sequences of 64 (9984 tokens, " in said.stderr
    return copied_run


def test_the_rest_of_a_run_lies_beside_it_and_differs_from_it_where_it_should(phased: Path) -> None:
    whole, rest = (load_manifest(phased / "run" / name) for name in ("manifest", "manifest-after-10010"))
    served = sum(source.tokens_before for source in rest.sources)
    assert rest.token_budget == 30_000 - served and abs(rest.num_tokens - rest.token_budget) <= 256
    shown = json.loads(fastmix("inspect", "run/manifest-after-10010", "--json", cwd=phased).stdout)
    assert shown["after"] == {"manifest": whole.sha256, "tokens": 9984, "sequence_length": 64}
    assert "all as recorded" in fastmix("verify", "run/manifest-after-10010", cwd=phased).stdout
    arguments = ("manifest", "diff", "run/manifest", "run/manifest-after-10010")
    table = fastmix(*arguments, cwd=phased).stdout
    diff = json.loads(fastmix(*arguments, "--json", cwd=phased).stdout)
    assert diff["order"]["sequence_length"] == [None, 64] and diff["run"]["token_budget"] == [30_000, rest.token_budget]
    assert diff["catalog"] == {} and diff["sources"]["noise"]["weight"][1] == 0.5
    assert {phase["phase"] for phase in diff["phases"]} == {0, 1, 2}
    assert "order    sequence_length" in table and "A -> B by source" in table and "-> 0.5000" in table
    same = fastmix("manifest", "diff", "run/manifest", "run/manifest", cwd=phased).stdout
    assert same.endswith("the same corpus in the same order\n")


@pytest.mark.filterwarnings("ignore:.*do not divide")
@pytest.mark.parametrize("folder", ["manifest", "manifest-after-10010"])
def test_a_step_is_traced_to_the_documents_whose_text_it_read(phased: Path, folder: str) -> None:
    tokenizer = load_tokenizer(Workdir(phased / "run").tokenizer)
    texts = {
        (name, f"line {number}"): json.loads(line)["text"]
        for name in ("prose", "code", "noise")
        for number, line in enumerate((phased / f"{name}.jsonl").read_text().splitlines(), 1)
    }
    path = phased / "run" / folder
    # Of 12 sequences of 64: one with the border of the first two phases, or any one.
    step = int(ManifestOrder(load_manifest(path), sequence_length=64).phase_start_F[1]) // 12 if folder == "manifest" else 7
    shape = ("--step", step, "--batch-size", 6, "--sequence-length", 64, "--ranks", 2)
    traced = json.loads(fastmix("trace", path, *shape, "--json", cwd=phased).stdout)
    by_rank = [json.loads(fastmix("trace", path, *shape, "--rank", rank, "--json", cwd=phased).stdout) for rank in range(2)]
    assert [traced["sequences"][rank::2] for rank in range(2)] == [found["sequences"] for found in by_rank]
    assert len({sequence["phase"] for sequence in traced["sequences"]}) == (2 if folder == "manifest" else 1)
    batches = [
        list(ManifestDataset(path, sequence_length=64, batch_size=6, rank=rank, world_size=2, drop_last=True))[step]
        for rank in range(2)
    ]
    num_checked = 0
    for number, sequence in enumerate(traced["sequences"]):
        tokens = batches[number % 2]["tokens"][number // 2].tolist()
        for document in sequence["documents"]:
            own, tokens = tokens[: document["tokens"]], tokens[document["tokens"] :]
            assert Path(document["file"]).stem == sequence["source"]
            text = tokenizer.decode(own, skip_special_tokens=True).strip()
            assert text in texts[sequence["source"], document["locator"]]
            num_checked += 1
        assert not tokens or sequence["documents"]
    assert num_checked >= 12
    totals = sum(document["tokens"] for document in traced["documents"])
    assert totals == sum(document["tokens"] for sequence in traced["sequences"] for document in sequence["documents"])
    assert "source  tokens  file" in fastmix("trace", path, *shape, cwd=phased).stdout


def test_a_step_over_materialized_shards_is_traced_to_the_same_documents(phased: Path, tmp_path: Path) -> None:
    fastmix("materialize", "run/manifest-after-10010", "--out", tmp_path / "shards", cwd=phased)
    given = trace(load_manifest(phased / "run" / "manifest-after-10010"), TracedStep(5, 6, 64, num_ranks=2))
    found = json.loads(
        fastmix(
            "trace",
            tmp_path / "shards",
            "--step",
            5,
            "--batch-size",
            6,
            "--sequence-length",
            64,
            "--ranks",
            2,
            "--json",
            cwd=phased,
        ).stdout
    )
    assert found["sequences"] == given["sequences"] and found["documents"] == given["documents"]
    # Half as long and twice as many are the same tokens.
    written = load_manifest(tmp_path / "shards")
    halves = trace(written, TracedStep(5, 12, 32, num_ranks=2), root=phased / "run")
    assert sorted(map(str, halves["documents"])) == sorted(map(str, given["documents"]))
    with pytest.raises(InputError, match=r"which documents the shards hold; give the workdir .* with --root"):
        trace(written, TracedStep(0, 1, 64), root=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("emit", "recipe.yaml", "--after", "90K"), "--after 90000: is beyond the end of"),
        (("emit", "recipe.yaml", "--after", "10020", "--set", "emit.token_budget=8K"), "emit.token_budget 8000 was served by then"),
        (("emit", "recipe.yaml", "--of", "run/manifest"), "says which run is to go on, but not from where; give --after TOKENS too"),
        (("emit", "recipe.yaml", "--after", "10K", "--out", "run/manifest", "--replace"), "is the manifest that is to be continued"),
        (("emit", "recipe.yaml", "--after", "10K", "--of", "run"), "there is no manifest; run `fastmix emit` first"),
        (("emit", "recipe.yaml", "--after", "10K", "--sequence-length", 100), "sequence_length 100 does not divide"),
        (("emit", "recipe.yaml", "--set", "emit.phases=[{tokens: 80%}, {tokens: 10K}]"), "come to 34000 tokens (80% = 24.0K + 10.0K)"),
        (("emit", "recipe.yaml", "--set", "emit.phases=[{tokens: 100%, mixture: none.json}]"), "none.json: there is no mixture"),
        (("run", "recipe.yaml", "--set", "emit.phases=[{tokens: 100%, mixture: none.json}]"), "none.json: there is no mixture"),
        (("emit", "recipe.yaml", "--mixture", "own.json", "--set", "emit.phases=[{tokens: 100%, weights: {code: 1}}]"), "not be used"),
        (("export", "run/manifest-after-10010", "--to", "webdataset"), "continues another manifest in the middle of an epoch"),
        (("trace", "run/manifest", "--step", 999, "--batch-size", 4, "--sequence-length", 64), "--step 999: is beyond the end of"),
        (("trace", "run/manifest", "--step", 0, "--batch-size", 4, "--sequence-length", 64, "--rank", 2), "--rank 2: there are 1 ranks"),
        (("trace", "run/manifest-after-10010", "--step", 0, "--batch-size", 4, "--sequence-length", 32), "read in sequences of 64"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_and_writes_nothing(phased: Path, arguments: tuple[object, ...], message: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in phased.rglob("*") if path.is_file()}
    refused = fastmix(*arguments, cwd=phased, code=2)
    assert message in refused.stderr and refused.stderr.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in phased.rglob("*") if path.is_file()}
