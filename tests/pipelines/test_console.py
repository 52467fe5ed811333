"""What the terminal shows: columns under their titles, notes, and nothing from a console that is muted."""

from __future__ import annotations

import pytest

from fastmix_data.errors import CorruptArtefactError, ToldElsewhere
from fastmix_data.results.mixture import Certainty, Mixture, SearchRecord, TrialsRecord
from pipelines.console import Console, mixture_notes, mixture_table

WEIGHTS = {"web": 0.25, "code": 0.7, "copy": 0.05}


@pytest.mark.parametrize("as_json", [False, True])
def test_a_muted_console_prints_nothing(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    Console(as_json=as_json).result({"answer": 1}, "answer: 1")
    assert capsys.readouterr().out == ('{\n  "answer": 1\n}\n' if as_json else "answer: 1\n")
    console = Console(as_json=as_json, rank=1)
    console.say("working", "still")
    console.result({"answer": 1}, "answer: 1")
    console.fail(ToldElsewhere("recipe.yaml", "is wrong", "put it right"))
    assert console.is_quiet and capsys.readouterr() == ("", "")
    console.fail(CorruptArtefactError("shard.tar", "is missing", "copy it to this machine"))
    assert capsys.readouterr() == ("", "error on rank 1: shard.tar: is missing; copy it to this machine\n")


def test_given_weights_make_a_table_from_large_to_small() -> None:
    heading, *lines = mixture_table(Mixture(weights=WEIGHTS)).splitlines()
    assert [line.split()[0] for line in lines] == ["code", "web", "copy"]
    assert heading.split() == ["source", "share"] and "70.0%" in lines[0] and lines[0].count("█") > lines[1].count("█")


def test_columns_stand_under_their_titles() -> None:
    mixture = Mixture(
        weights=WEIGHTS,
        shares={"loss_tokens": WEIGHTS, "examples": {"web": 0.5, "code": 0.1, "copy": 0.4}},
        certainty=Certainty(
            interval={name: (weight - 0.05, weight + 0.05) for name, weight in WEIGHTS.items()},
            seed_interval=dict.fromkeys(WEIGHTS, (0.0, 1.0)),
            signal_to_noise={"web": 0.4, "code": 13.25, "copy": -102.0},
        ),
    )
    heading, *lines = mixture_table(mixture, dict.fromkeys(WEIGHTS, 1.5)).splitlines()
    for title, cell in (("90% interval", "[ 65.0  75.0]"), ("another seed", "[  0.0 100.0]"), ("of examples", "  10.0%")):
        assert lines[0].index(cell) == heading.index(title)
    assert [line[: heading.index("signal/noise") + len("signal/noise")].split()[-1] for line in lines] == [
        "13.2",
        "0.4",
        "-102.0",
    ]
    assert all(line.endswith("1.50 epochs") for line in lines)


def test_notes_name_interchangeable_sources_with_the_sum_of_their_shares_and_the_end() -> None:
    mixture = Mixture(
        weights=WEIGHTS,
        certainty=Certainty(interchangeable=[["code", "copy"]]),
        search=SearchRecord(stopped="used up its budget of 61.4K tokens (120 steps)"),
    )
    assert mixture_notes(mixture) == [
        "code and copy are interchangeable: their scores cannot be told apart; only the sum of their shares (75.0%) is meaningful",
        "end of search: used up its budget of 61.4K tokens (120 steps)",
    ]
    assert mixture_notes(Mixture(weights=WEIGHTS)) == []


def test_notes_say_how_many_documents_the_answer_rests_on_and_warn_of_few() -> None:
    said = mixture_notes(Mixture(weights=WEIGHTS, certainty=Certainty(num_documents={"exam": 2000, "style": 5})))
    assert said == [
        "documents of the target that the search saw: 2,000 of exam and 5 of style; the interval is over other ones too",
        "warning: the search sees fewer than 10 documents of a target (style 5), so its mixture may be that of chance; hold out more",
    ]


@pytest.mark.parametrize(
    ("low", "said"),
    [
        (
            0.02,
            "trials chose the mixture of the scores: 0.100 nats ahead of proportional shares in 2 pairs (90% interval +0.020 to +0.180)",
        ),
        (
            -0.02,
            "trials chose the mixture of the scores: it cannot be told from proportional shares in 2 pairs (90% interval -0.020 to +0.180)",
        ),
    ],
)
def test_notes_say_how_far_ahead_the_answer_is_and_claim_nothing_below_the_noise(low: float, said: str) -> None:
    trials = TrialsRecord(
        mixtures=dict.fromkeys(("start", "scores", "proportional"), WEIGHTS),
        losses={key: {"0": 4.0, "1": 4.0} for key in ("start", "scores", "proportional")},
        tokens={"0": 1, "1": 1},
        probability={"start": 0.1, "scores": 0.9, "proportional": 0.0},
        winner="scores",
        ahead={"start": (0.05, 0.01, 0.09), "proportional": (0.1, low, 0.18)},
        noise=0.015,
        exponent=0.5,
        horizon_tokens=2,
    )
    assert mixture_notes(Mixture(weights=WEIGHTS, trials=trials)) == [f"{said}; one proxy's loss is known to 0.015"]
    alone = trials.model_copy(update={"ahead": {}})
    assert mixture_notes(Mixture(weights=WEIGHTS, trials=alone)) == []
