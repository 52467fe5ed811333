"""Kills ranks of searches at random moments, runs each again until it is finished, and compares it with one that nobody disturbed."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from processes import Started, start, start_process, wait
from proxies import difference as difference_of_proxies
from proxies import job_of, take_away, train
from searches import SETTINGS, difference, in_folder, plans
from small_disk import small_disk

from fastmix_data.workdir import SearchFolder
from train.proxy import engine
from train.search.plan import SearchPlan

MOMENTS = {"reference": ("reference run", "scores", "a save"), "trials": ("scores", "trials", "a save")}
SIGNS = {
    "reference run": "checkpoints/reference/step-*",
    "scores": "checkpoints/scores/step-*",
    "trials": "checkpoints/trial/step-*",
}
LONGEST_TO_END, TOLERANCE = 120.0, 1e-3
LONGEST_DELAY = 0.2  # seconds; a quick machine is through with the steps after a first checkpoint in 0.3


@dataclass
class Outcome:
    """What became of a seed.

    Attributes:
        story: what was done to it.
        seconds_to_end: of each run whose rank was killed, until it had ended.
        problem: empty if all was as wanted.
    """

    story: list[str] = field(default_factory=list)
    seconds_to_end: list[float] = field(default_factory=list)
    problem: str = ""


class Check:
    """Undisturbed searches, made when they are first asked for, and disturbed ones beside them."""

    def __init__(self, root: Path, *, num_ranks: int) -> None:
        """Write the corpus."""
        self._root, self._num_ranks = root, num_ranks
        self._plans = plans(root / "corpus")
        self._expected: dict[tuple[str, int], SearchFolder] = {}

    def seed(self, number: int) -> Outcome:
        """Disturb a search, or a confirming proxy, in the way that a seed says."""
        if number % 10 == 4:
            return self._proxy_seed(number)
        rng, outcome = random.Random(number), Outcome()
        name = rng.choice(list(self._plans))
        stage = rng.choice(SETTINGS[name]["stages"])
        kind = "full disk" if number % 10 == 9 else "other ranks" if number % 5 == 3 else "same ranks"
        expected = self._undisturbed(name, stage)
        folder = self._root / f"seed-{number}"
        outcome.story.append(f"{name}, ZeRO {stage}, {kind}")
        with ExitStack() as stack:
            if kind == "full disk":
                stack.enter_context(small_disk(folder, size="8m"))
            plan = in_folder(self._plans[name], folder / "search", stage=stage)
            try:
                if kind == "full disk":
                    self._fill_disk(plan, rng, outcome)
                else:
                    self._kill(plan, name, rng, outcome)
                num_ranks = rng.choice([1, 2 * self._num_ranks]) if kind == "other ranks" else self._num_ranks
                self._finish(plan, num_ranks, outcome)
                tolerance = TOLERANCE if kind == "other ranks" else 0.0
                outcome.problem = difference(plan.folder, expected, tolerance=tolerance)
            except (AssertionError, TimeoutError) as error:
                outcome.problem = str(error)
        return outcome

    def _proxy_seed(self, number: int) -> Outcome:
        """Kill a confirming proxy once or twice."""
        rng, outcome = random.Random(number), Outcome(["confirming proxy"])
        job, log = job_of(self._plans["trials"], seed=number), self._root / f"seed-{number}.log"
        try:
            assert wait(start_process(lambda: train(job), log=log)) == 0, f"undisturbed it fails: {log.read_text()}"
            expected = take_away(job)
            for _ in range(rng.choice([1, 2])):
                before = set(job.folder.checkpoints.glob("step-*"))
                started = start_process(lambda: train(job), log=log)
                if not _until(lambda known=before: bool(set(job.folder.checkpoints.glob("step-*")) - known), started):
                    break
                time.sleep(rng.uniform(0, LONGEST_DELAY))
                with suppress(ProcessLookupError):
                    os.kill(started.process, signal.SIGKILL)
                outcome.story.append("killed" if wait(started) < 0 else "done before it was killed")
            assert wait(start_process(lambda: train(job), log=log)) == 0, f"the last run fails: {log.read_text()}"
            outcome.problem = difference_of_proxies(job, expected)
        except (AssertionError, TimeoutError) as error:
            outcome.problem = str(error)
        return outcome

    def _undisturbed(self, name: str, stage: int) -> SearchFolder:
        if (name, stage) not in self._expected:
            plan = in_folder(self._plans[name], self._root / f"whole-{name}-{stage}", stage=stage)
            self._finish(plan, self._num_ranks, Outcome())
            self._expected[name, stage] = plan.folder
        return self._expected[name, stage]

    def _start(self, plan: SearchPlan, num_ranks: int) -> Started:
        log = self._root / f"{plan.folder.root.parent.name}.log"
        return start(plan, num_ranks=num_ranks, log=log)

    def _finish(self, plan: SearchPlan, num_ranks: int, outcome: Outcome) -> None:
        started = self._start(plan, num_ranks)
        code = wait(started)
        assert code == 0, f"the last run ended with code {code}: {started.lines()[-1:]}"
        outcome.story.append(f"finished on {num_ranks}")

    def _kill(self, plan: SearchPlan, name: str, rng: random.Random, outcome: Outcome) -> None:
        for _ in range(rng.choice([1, 1, 2])):
            moment = rng.choice(MOMENTS[name])
            started = self._start(plan, self._num_ranks)
            if not self._wait_for(plan, moment, started):
                return
            if moment != "a save":
                time.sleep(rng.uniform(0, LONGEST_DELAY))
            if not (ranks := started.ranks):  # all was done before
                assert wait(started) == 0, f"nobody was killed, and it says {started.lines()}"
                return
            chosen = ranks if rng.random() < 0.2 else [rng.choice(ranks)]
            for process in chosen:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            killed_at = time.monotonic()
            code = wait(started, seconds=LONGEST_TO_END)
            outcome.seconds_to_end.append(time.monotonic() - killed_at)
            outcome.story.append(f"{'all' if len(chosen) > 1 else 'one'} killed in {moment}")
            lines = [line for line in started.lines() if not line.startswith("warning:")]
            if code == 0:  # all was done before
                return
            assert code == 2 and len(lines) == 1 and "ended by SIGKILL" in lines[0], f"code {code}, and it says {lines}"

    def _wait_for(self, plan: SearchPlan, moment: str, started: Started) -> bool:
        """Until a run is there; whether it is, and has not ended."""
        root = plan.folder.root
        before = set(root.glob("checkpoints/*/step-*"))
        if moment == "a save":
            return _until(
                lambda: any(not (path / "index.json").exists() for path in set(root.glob("checkpoints/*/step-*")) - before),
                started,
            )
        return _until(lambda: bool(set(root.glob(SIGNS[moment])) - before), started)

    def _fill_disk(self, plan: SearchPlan, rng: random.Random, outcome: Outcome) -> None:
        """Take all space of the disk while a proxy trains, until a save has failed, and give it back."""
        started = self._start(plan, self._num_ranks)
        if not _until(lambda: any(plan.folder.root.glob("checkpoints/scores/step-*/index.json")), started):
            return
        time.sleep(rng.uniform(0, 0.5))
        ballast = plan.folder.root.parent / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 14))
        _until(lambda: any("no checkpoint was written" in line for line in started.lines()), started)
        ballast.unlink()
        code = wait(started)
        warnings = sum("no checkpoint was written" in line for line in started.lines())
        others = [line for line in started.lines() if not line.startswith("warning:")]
        outcome.story.append(f"disk filled, {warnings} saves failed, code {code}")
        assert len(others) == (0 if code == 0 else 1) and code in (0, 2), f"code {code}, and it says {others}"
        leftover = [path for path in plan.folder.root.glob("checkpoints/*/step-*") if not (path / "index.json").exists()]
        assert not leftover, f"a save that failed has left {leftover}"


def _until(is_so: Callable[[], bool], started: Started) -> bool:
    """Wait, and say whether the run goes on still."""
    while not is_so():
        if Path(f"/proc/{started.process}/stat").read_text().split(")")[1].split()[0] == "Z":
            wait(started)
            return False
        time.sleep(0.001)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    engine.import_deepspeed()  # once, for all processes that are forked
    failures, to_end, begun = 0, [], time.monotonic()
    # In memory where there is such a folder: a disk that syncs slowly would hide what happens between two saves.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fastmix-faults-", dir=memory) as root:
        check = Check(Path(root), num_ranks=options.ranks)
        for number in range(options.first, options.first + options.seeds):
            started = time.monotonic()
            outcome = check.seed(number)
            failures += bool(outcome.problem)
            to_end += outcome.seconds_to_end
            verdict = f"WRONG: {outcome.problem}" if outcome.problem else "as undisturbed"
            print(f"seed {number}: {'; '.join(outcome.story)}; {verdict} ({time.monotonic() - started:.0f} s)", flush=True)
    longest = f"{max(to_end):.1f} s" if to_end else "-"
    print(
        f"{options.seeds - failures} of {options.seeds} seeds ended as undisturbed; {len(to_end)} times ranks were killed, and the others "
        f"had ended {longest} later at most; {time.monotonic() - begun:.0f} s in all"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
