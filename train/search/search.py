"""The search: a plan in, mixture and trajectory out.

`fastmix search` calls `search`, which starts the ranks of this machine by itself, or is one rank of a run that torchrun or the deepspeed
launcher started.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from fastmix_data.atomic_files import exclusive_lock
from fastmix_data.errors import Interrupted
from fastmix_data.loading.sinks import require_package
from fastmix_data.progress import progress
from fastmix_data.results.mixture import Mixture, load_mixture
from fastmix_data.results.searched_recipe import save_searched_recipe
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.tensor_files import Runs
from train.memory.fitting_batch import with_fitting_batch
from train.proxy.engine import ProxyEngine, process_group
from train.proxy.launch import launch_ranks
from train.ranks.meeting import Meeting
from train.recording.search_recorder import SearchRecorder, Told
from train.search.plan import SearchPlan, check_planned_proxy, check_search
from train.search.proposals import propose
from train.search.proxy_run import ProxyRun
from train.search.result import RunRecord, discard_other_search, finished_mixture, write_result
from train.search.seeds import adopt_single_search, write_mean
from train.search.start import Start, find_start
from train.search.trials import Trials, run_trials
from train.target.outcome import broken_limits, compare_with_reference, losses_by_target
from train.target.reference_run import ReferenceRun, reference_run
from train.target.target import Target


@dataclass(frozen=True)
class SearchResult:
    """What a call of `search` came to; `warnings` name the targets that did not keep their limit."""

    mixture: Mixture
    did_work: bool
    message: str
    warnings: tuple[str, ...] = ()


def search(
    plan: SearchPlan,
    *,
    num_seeds: int | None = None,
    num_ranks: int = 1,
    launched: Meeting | None = None,
    replace: bool = False,
    quiet: bool = False,
    told: Told | None = None,
) -> SearchResult:
    """Learn the mixture of a preprocessed workdir, or go on with a search that was stopped.

    Args:
        num_seeds: searches with training.seed, training.seed + 1 and so on, whose mean is the answer; those that are finished are kept.
            None takes a finished answer of any number, or makes one search.
        num_ranks: processes started on this machine.
        launched: all ranks, where a launcher started this one; they call this together.
        replace: discard a mixture or checkpoint that was made from another recipe or other data.
        told: where it tells what it does; nowhere but in its metrics when not given.

    Raises:
        RecipeError: the recipe cannot work; found before anything is trained.
        MismatchError: another search lies in the workdir.
        Interrupted: stopped by a signal; the same command goes on.
    """
    told = told or Told()
    ranks = _Ranks(launched.world_size if launched else num_ranks, launched, replace=replace, quiet=quiet, told=told)
    for kind in told.sinks:
        require_package(kind)
    with ranks.own_log():
        return _search_on(ranks, plan, num_seeds=num_seeds)


def _search_on(ranks: _Ranks, plan: SearchPlan, *, num_seeds: int | None) -> SearchResult:
    check_search(plan, num_ranks=ranks.number)
    done = finished_mixture(plan, num_seeds=num_seeds, replace=ranks.replace)
    if ranks.launched is not None:
        ranks.launched.agree(
            {
                "recipe": plan.recipe_hash,
                "catalog": plan.catalog.fingerprint,
                "number of searches": str(num_seeds or 1),
                "--replace": str(ranks.replace),
                plan.folder.mixture.name: "finished" if done is not None else "not finished",
            }
        )
    if done is not None:
        message = f"{plan.folder.mixture} is complete and matches the recipe; nothing to do"
        return SearchResult(done, False, message, broken_limits(done))
    remark = check_planned_proxy(plan.proxy, scope=plan.search.hypergradient, num_ranks=ranks.number)
    if remark and ranks.leads and not ranks.quiet:
        print(remark, file=sys.stderr, flush=True)
    if num_seeds in (None, 1):
        ranks.run(plan)
    else:
        _search_seeds(plan, ranks, num_seeds=num_seeds)
    mixture = load_mixture(plan.folder.mixture)
    return SearchResult(mixture, True, f"wrote {plan.folder.mixture}", broken_limits(mixture))


@dataclass(frozen=True)
class _Ranks:
    """The processes that a search runs on.

    Attributes:
        number: of all ranks.
        launched: where a launcher started them; None where this process does.
    """

    number: int
    launched: Meeting | None
    replace: bool
    quiet: bool
    told: Told

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes what is not of a single rank."""
        return self.launched is None or self.launched.rank == 0

    def own_log(self) -> AbstractContextManager[None]:
        """A block in which this process logs, if it is a rank; those that it starts do so themselves."""
        if self.launched is None and self.number > 1:
            return nullcontext()
        return self.told.rank_log(self.launched.rank if self.launched else 0, world_size=self.number)

    def meeting(self) -> AbstractContextManager[None]:
        """A block that all processes leave together."""
        launched = self.launched
        if launched is None:
            return nullcontext()
        return process_group(rank=launched.rank, world_size=launched.world_size, rendezvous=launched.group_store)

    def run(self, plan: SearchPlan) -> None:
        """One search, from first to last step."""
        if self.launched is None and self.number > 1:
            launch_ranks(_run_started_rank, plan, self.replace, self.quiet, self.told, num_ranks=self.number)
        else:
            rank, store = (self.launched.rank, self.launched.group_store) if self.launched else (0, None)
            _run_rank(plan, self.replace, self.quiet, self.told, rank, self.number, store)


def _search_seeds(plan: SearchPlan, ranks: _Ranks, *, num_seeds: int) -> None:
    """Several searches in folders below the search's own, and their mean in it."""
    plans = plan.of_seeds(num_seeds)
    with exclusive_lock(plan.folder.lock, command="search") if ranks.leads else nullcontext():
        with ranks.meeting():
            if ranks.leads:
                adopt_single_search(plan, replace=ranks.replace)
                save_searched_recipe(plan.folder.recipe, plan.sections)
        for one in plans:
            if finished_mixture(one, replace=ranks.replace) is None:
                ranks.run(one)
        with ranks.meeting():
            if ranks.leads:
                write_mean(plan, plans)


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT, SIGTERM or SIGUSR1 into a question that the run asks at each update; a second one acts at once."""
    asked = False

    def handle(number: int, _: object) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(number, None)
        asked = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_started_rank(
    plan: SearchPlan, replace: bool, quiet: bool, told: Told, rank: int, world_size: int, rendezvous: str
) -> None:
    """A rank that this machine's first process has started."""
    with told.rank_log(rank, world_size=world_size):
        _run_rank(plan, replace, quiet, told, rank, world_size, rendezvous)


def _run_rank(
    plan: SearchPlan, replace: bool, quiet: bool, told: Told, rank: int, world_size: int, rendezvous: str | Store | None
) -> None:
    """One rank, from model to mixture. The first one keeps other searches out and decides what becomes of an earlier one."""
    with (
        process_group(rank=rank, world_size=world_size, rendezvous=rendezvous),
        exclusive_lock(plan.folder.lock, command="search") if rank == 0 else nullcontext(),
    ):
        if rank == 0:  # the others wait for it when they build the engine
            discard_other_search(plan.folder, identity=plan.identity, replace=replace)
            save_searched_recipe(plan.folder.recipe, plan.sections)
        recorder = SearchRecorder(
            plan.folder,
            proxy=plan.proxy,
            made_from={"recipe": plan.recipe_hash, "data": plan.catalog.fingerprint},
            num_ranks=world_size,
            targets=list(plan.target.weights()),
            trial_steps=plan.trial_steps,
            has_reference=plan.target.reference_mixture is not None,
            is_first=rank == 0,
            sinks=told.sinks,
        )
        with recorder:
            _search(plan, recorder, quiet=quiet or rank > 0)


def _reference(plan: SearchPlan, target: Target, recorder: SearchRecorder, *, quiet: bool) -> ReferenceRun | None:
    """The reference run, where the recipe asks for one; what an earlier call of it finished is read."""
    mixture = plan.target.reference_mixture
    if mixture is None:
        return None
    with _stop_on_signal() as stop_asked:
        return reference_run(
            plan.proxy,
            plan.search,
            mixture=mixture,
            path=plan.folder.reference,
            target=target,
            kept=plan.checkpoints_of("reference"),
            stop_asked=stop_asked,
            quiet=quiet,
            recorder=recorder,
        )


def build_run(
    plan: SearchPlan, world_size: int, *, start: Start, reference: ReferenceRun | None = None
) -> tuple[ProxyRun, ProxyEngine, Target]:
    """A rank's run at step 0, with its engine and target; the process group must be there."""
    proxy, search = plan.main, plan.search
    engine = proxy.build_engine(seed=proxy.training.seed)
    losses = reference.losses if reference else None
    target = Target.of_plan(proxy, plan.target, search, num_ranks=world_size, reference=losses)
    run = ProxyRun(proxy, search=search, engine=engine, target=target, initial_K=start.initial_K, constraints=plan.constraints)
    return run, engine, target


def _search(plan: SearchPlan, recorder: SearchRecorder, *, quiet: bool) -> None:
    """Go on from where an earlier call was stopped, or from the start, to the end of the budget, and write the result."""
    plan = _with_fitting_batch(plan)
    fixed = Target.of_plan(plan.proxy, plan.target, plan.search, num_ranks=dist.get_world_size())
    reference = _reference(plan, fixed, recorder, quiet=quiet)
    recorder.enter("count")
    start = find_start(plan)
    found = _follow_scores(plan, start, reference, recorder, quiet=quiet)
    recorder.settle("search", num_tokens=found.num_steps * plan.main.training.tokens_per_step)
    trials: Trials | None = None
    if plan.trial_steps:
        with _stop_on_signal() as stop_asked:
            candidates = propose(plan, start=start, scores_K=found.weights_K)
            trials = run_trials(plan, candidates, target=fixed, stop_asked=stop_asked, quiet=quiet, recorder=recorder)
    if dist.get_rank() == 0:
        num_tokens = found.num_tokens + (reference.num_tokens if reference else 0)
        seconds = found.seconds + start.seconds + (reference.seconds if reference else 0.0)
        mixture = write_result(plan, start=start, found=found, trials=trials, num_tokens=num_tokens, seconds=seconds)
        recorder.finished(mixture)


def _with_fitting_batch(plan: SearchPlan) -> SearchPlan:
    """The search with passes as large as every rank's memory holds, where the recipe leaves that open."""
    num_ranks, search = dist.get_world_size(), plan.search
    proxy = with_fitting_batch(
        plan.proxy,
        num_ranks=num_ranks,
        ranks_on_machine=int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks)),
        is_scored=search.hypergradient == "all",
        remembers=search.target_memory > 0,
    )
    return replace(plan, proxy=proxy)


def _follow_scores(
    plan: SearchPlan, start: Start, reference: ReferenceRun | None, recorder: SearchRecorder, *, quiet: bool
) -> RunRecord:
    """Train one proxy while its mixture moves along the scores."""
    training, num_sequences, started = plan.main.training, plan.search.eval_sequences, time.monotonic()
    run, engine, target = build_run(plan, dist.get_world_size(), start=start, reference=reference)
    recorder.describe_model(engine)
    checkpoints = Checkpoints(plan.checkpoints_of("scores"), engine)
    saved = checkpoints.resume()
    if saved is None:
        seconds_before, losses = 0.0, losses_by_target(target, engine, "start", num_sequences=num_sequences)
    else:
        run.load_state_dict(saved.state["run"], tensors=saved.tensors)
        seconds_before, losses = saved.state["seconds"], saved.state["losses"]

    recorder.enter("search", done=run.step * training.tokens_per_step)

    def seconds() -> float:
        return float(seconds_before) + time.monotonic() - started

    def state() -> tuple[dict[str, Any], Runs]:
        return {"run": run.state_dict(), "losses": losses, "seconds": seconds()}, run.tensors()

    per_step = training.tokens_per_step
    with (
        _stop_on_signal() as stop_asked,
        progress(_label(plan), total=training.num_tokens, done=run.step * per_step, quiet=quiet) as advance,
        checkpoints,
    ):
        finished = run.run(
            advance=advance,
            stop_asked=stop_asked,
            after_update=lambda: checkpoints.after_step(run.step, state),
            updated=lambda row: recorder.update(row, engine, search=plan.search),
        )
        # Trials may be stopped too, and what they try must then be there again.
        if plan.trial_steps or not finished:
            checkpoints.save(run.step, state, stopping=not finished)
        else:
            checkpoints.finish()
    if not finished:
        saved_at = f"the search is saved at step {run.step} of {training.num_steps}"
        raise Interrupted("", saved_at, "the same command goes on from there")
    ended = losses_by_target(target, engine, "end", num_sequences=num_sequences)
    losses = {name: losses[name] | ended[name] for name in target.names}
    record = RunRecord.of(
        run,
        engine,
        losses=losses,
        comparison=compare_with_reference(target, engine, losses, step=run.step, num_steps=training.num_steps),
        num_tokens=run.step * per_step + target.num_tokens_read,
        seconds=seconds(),
    )
    engine.close()
    return record


def _label(plan: SearchPlan) -> str:
    """What the progress bar says: `search`, or the seed where there are several."""
    folder = plan.folder.root.name
    return f"search {folder.replace('-', ' ')}" if folder.startswith("seed-") else "search"
