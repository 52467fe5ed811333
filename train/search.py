"""The search: shards and target in, mixture and trajectory out.

`python -m train.search RECIPE` is one rank of a run that torchrun or the deepspeed launcher starts; `fastmix search` calls `search`,
which starts the ranks of this machine by itself.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmix_data.catalog import Catalog, catalog_of_workdir
from fastmix_data.errors import FastmixError, Interrupted, MismatchError, RecipeError
from fastmix_data.mixture import Mixture, load_mixture
from fastmix_data.progress import progress
from fastmix_data.recipe import Recipe
from fastmix_data.recipe_file import load_recipe
from fastmix_data.sequences import SequenceReader
from train.checkpoint import load_checkpoint, save_checkpoint
from train.constraints import constraints_of
from train.engine import ProxyEngine, prepare_environment, process_group
from train.hypergradient import check_scores
from train.launch import launch_ranks
from train.proxy import build_proxy, proxy_config
from train.proxy_run import ProxyRun
from train.reference_run import ReferenceRun, reference_run
from train.search_artefacts import (
    discard_other_search,
    finished_mixture,
    hold_search,
    run_identity,
    save_recipe,
    search_directory,
    write_result,
)
from train.seeds import adopt_single_search, recipes_of_seeds, write_mean
from train.start import Start, find_start
from train.target import Target
from train.target_outcome import broken_limits, compare_with_reference, losses_by_target


@dataclass(frozen=True)
class SearchResult:
    """What a call of `search` came to; `warnings` name the targets that did not keep their limit."""

    mixture: Mixture
    did_work: bool
    message: str
    warnings: tuple[str, ...] = ()


def search(
    recipe: Recipe, *, num_seeds: int | None = None, num_ranks: int = 1, replace: bool = False, quiet: bool = False
) -> SearchResult:
    """Learn the mixture of a preprocessed workdir, or go on with a search that was stopped.

    Args:
        num_seeds: searches with search.seed, search.seed + 1 and so on, whose mean is the answer; those that are finished are kept.
            None takes a finished answer of any number, or makes one search.
        num_ranks: processes started on this machine.
        replace: discard a mixture or checkpoint that was made from another recipe or other data.

    Raises:
        RecipeError: the recipe cannot work; found before anything is trained.
        MismatchError: another search lies in the workdir.
        Interrupted: stopped by a signal; the same command goes on.
    """
    catalog = catalog_of_workdir(recipe.workdir_path)
    check_search(recipe, catalog, num_ranks=num_ranks)
    directory = search_directory(recipe)
    done = finished_mixture(recipe, catalog, num_seeds=num_seeds, replace=replace)
    if done is not None:
        message = f"{directory / 'mixture.json'} is complete and matches the recipe; nothing to do"
        return SearchResult(done, False, message, broken_limits(done))

    check_proxy(recipe, catalog)

    def run_one(one: Recipe) -> None:
        if num_ranks > 1:
            launch_ranks(_run_launched, one, replace, quiet, num_ranks=num_ranks)
            return
        with process_group(rank=0, world_size=1):
            _run_rank(one, rank=0, world_size=1, replace=replace, quiet=quiet)

    _search_seeds(recipe, catalog, run_one, num_seeds=num_seeds or 1, num_ranks=num_ranks, replace=replace)
    mixture = load_mixture(directory / "mixture.json")
    return SearchResult(mixture, True, f"wrote {directory / 'mixture.json'}", broken_limits(mixture))


def _search_seeds(
    recipe: Recipe,
    catalog: Catalog,
    run_one: Callable[[Recipe], None],
    *,
    num_seeds: int,
    num_ranks: int,
    replace: bool,
    leads: bool = True,
    meeting: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """One search in the search's folder, or several in folders below it and their mean.

    Args:
        leads: whether this process is the one that writes: the only one here, or the first rank under a launcher.
        meeting: a block that all processes leave together.
    """
    if num_seeds == 1:
        run_one(recipe)
        return
    recipes = recipes_of_seeds(recipe, num_seeds)
    with hold_search(search_directory(recipe)) if leads else nullcontext():
        with meeting():
            if leads:
                adopt_single_search(recipe, catalog, num_ranks=num_ranks, replace=replace)
                save_recipe(recipe, catalog)
        for one in recipes:
            if finished_mixture(one, catalog, replace=replace) is None:
                run_one(one)
        if leads:
            write_mean(recipe, catalog, recipes)


def check_search(recipe: Recipe, catalog: Catalog, *, num_ranks: int) -> None:
    """Refuse what cannot work, before a model is built.

    Raises:
        RecipeError: a batch cannot be divided over the ranks, no mixture meets the constraints, or the proxy does not fit the
            tokenizer.
        InfeasibleBudgetError: emit.token_budget is beyond the epoch caps.
        InputError: a source or target is smaller than one sequence.
    """
    settings = recipe.search
    micro_batch(recipe, num_ranks)
    if catalog.info.block_tokens != recipe.shards.block_tokens or set(catalog.sources) != set(recipe.sources):
        raise MismatchError(f"{catalog.root}: the catalog was made from another recipe; run `fastmix preprocess --replace` first")
    SequenceReader(catalog, sources=catalog.sources, split="train", sequence_length=settings.sequence_length)
    for half in ("search", "unseen"):
        SequenceReader(
            catalog, sources=list(recipe.target.weights()), split="valid", sequence_length=settings.sequence_length, half=half
        )
    constraints_of(recipe, catalog)
    proxy_config(
        recipe.proxy,
        resolve=recipe.resolve,
        vocab_size=catalog.info.vocab_size,
        sequence_length=settings.sequence_length,
    )


def check_proxy(recipe: Recipe, catalog: Catalog) -> None:
    """Refuse a proxy that cannot be scored, before a trial or the search trains one.

    Raises:
        RecipeError: a module uses its parameters in a way that scores cannot follow.
    """
    settings = recipe.search
    config = proxy_config(
        recipe.proxy, resolve=recipe.resolve, vocab_size=catalog.info.vocab_size, sequence_length=settings.sequence_length
    )
    model = build_proxy(recipe.proxy, config=config, resolve=recipe.resolve, seed=settings.seed)
    check_scores(model, scope=settings.hypergradient)


def micro_batch(recipe: Recipe, num_ranks: int) -> int:
    """Sequences of one pass on one rank.

    Raises:
        RecipeError: global_batch or target_batch cannot be divided evenly.
    """
    settings = recipe.search
    for name, batch in (("global_batch", settings.global_batch), ("target_batch", settings.target_batch)):
        if batch % num_ranks:
            raise RecipeError(
                f"search.{name} {batch} cannot be divided over {num_ranks} ranks; use a multiple, for example "
                f"{-(-batch // num_ranks) * num_ranks}"
            )
    share = settings.global_batch // num_ranks
    size = settings.micro_batch or share
    if share % size:
        raise RecipeError(
            f"search.micro_batch {size} does not divide a rank's {share} sequences (global_batch {settings.global_batch} over "
            f"{num_ranks} ranks); use a divisor"
        )
    return size


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a question that the run asks at each update; a second one acts at once."""
    asked = False

    def handle(number: int, _: object) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(number, None)
        asked = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_launched(recipe: Recipe, replace: bool, quiet: bool, rank: int, world_size: int, rendezvous: str) -> None:
    with process_group(rank=rank, world_size=world_size, rendezvous=rendezvous):
        _run_rank(recipe, rank=rank, world_size=world_size, replace=replace, quiet=quiet)


def _run_rank(recipe: Recipe, *, rank: int, world_size: int, replace: bool, quiet: bool) -> None:
    """One rank, from model to mixture. The first one keeps other searches out and decides what becomes of an earlier one."""
    catalog, directory = catalog_of_workdir(recipe.workdir_path), search_directory(recipe)
    identity = run_identity(recipe, catalog, world_size)
    with hold_search(directory) if rank == 0 else nullcontext():
        if rank == 0:  # the others wait for it when they build the engine
            discard_other_search(directory, identity=identity, replace=replace)
            save_recipe(recipe, catalog)
        _search(recipe, catalog, identity=identity, quiet=quiet or rank > 0)


def _prepare(recipe: Recipe, catalog: Catalog, identity: dict[str, Any], *, quiet: bool) -> tuple[ReferenceRun | None, Start]:
    """The reference run, where the recipe asks for one, and the start; what an earlier call of them finished is read."""
    directory = search_directory(recipe)
    target = Target.of_recipe(recipe, catalog, micro_batch=micro_batch(recipe, identity["number_of_ranks"]))
    with _stop_on_signal() as stop_asked:
        common: dict[str, Any] = {"target": target, "identity": identity, "stop_asked": stop_asked, "quiet": quiet}
        wanted = recipe.target.reference_mixture is not None
        reference = reference_run(recipe, catalog, path=directory / "reference.json", **common) if wanted else None
        return reference, find_start(recipe, catalog, path=directory / "start.json", **common)


def build_run(
    recipe: Recipe, catalog: Catalog, world_size: int, *, start: Start, reference: ReferenceRun | None = None
) -> tuple[ProxyRun, ProxyEngine, Target]:
    """A rank's run at step 0, with its engine and target; the process group must be there.

    Args:
        recipe: the `main_run` of the user's.
    """
    settings, size = recipe.search, micro_batch(recipe, world_size)
    config = proxy_config(
        recipe.proxy, resolve=recipe.resolve, vocab_size=catalog.info.vocab_size, sequence_length=settings.sequence_length
    )
    model = build_proxy(recipe.proxy, config=config, resolve=recipe.resolve, seed=settings.seed)
    engine = ProxyEngine(model, search=settings, deepspeed=recipe.deepspeed, micro_batch=size)
    target = Target.of_recipe(recipe, catalog, micro_batch=size, reference=reference.losses if reference else None)
    run = ProxyRun(
        catalog,
        search=settings,
        engine=engine,
        target=target,
        initial_K=np.array(start.initial),
        prior_K=np.array(start.prior),
        constraints=constraints_of(recipe, catalog),
        share_seen=recipe.share_seen,
    )
    return run, engine, target


def _search(recipe: Recipe, catalog: Catalog, *, identity: dict[str, Any], quiet: bool) -> None:
    """Go on from the checkpoint if there is one, train to the end of the budget, and write the result."""
    reference, start = _prepare(recipe, catalog, identity, quiet=quiet)
    settings, started = recipe.main_run.search, time.monotonic()
    run, engine, target = build_run(recipe.main_run, catalog, identity["number_of_ranks"], start=start, reference=reference)
    checkpoints = search_directory(recipe) / "checkpoints"
    saved = load_checkpoint(checkpoints, identity=identity, engine=engine)
    if saved is None:
        seconds_before = start.seconds + (reference.seconds if reference else 0.0)
        losses = losses_by_target(target, engine, "start", num_sequences=settings.eval_sequences)
    else:
        run.load_state_dict(saved["run"], tensors=saved["tensors"])
        seconds_before, losses = saved["seconds"], saved["losses"]

    def seconds() -> float:
        return float(seconds_before) + time.monotonic() - started

    def checkpoint() -> None:
        state = {"run": run.state_dict(), "losses": losses, "seconds": seconds()}
        save_checkpoint(checkpoints, step=run.step, state=state, tensors=run.tensors(), identity=identity, engine=engine)

    per_step = settings.tokens_per_step
    with (
        _stop_on_signal() as stop_asked,
        progress(_label(recipe), total=settings.num_steps * per_step, done=run.step * per_step, quiet=quiet) as advance,
    ):
        finished = run.run(advance=advance, stop_asked=stop_asked, checkpoint=checkpoint)
    if not finished:
        raise Interrupted(f"the search is saved at step {run.step} of {settings.num_steps}; the same command goes on from there")
    ended = losses_by_target(target, engine, "end", num_sequences=settings.eval_sequences)
    losses = {name: losses[name] | ended[name] for name in target.names}
    comparison = compare_with_reference(target, engine, losses, step=run.step, num_steps=settings.num_steps)
    if engine.rank == 0:
        write_result(
            recipe,
            catalog,
            start=start,
            run=run,
            engine=engine,
            losses=losses,
            comparison=comparison,
            num_tokens=run.step * per_step
            + target.num_tokens_read
            + start.num_tokens
            + (reference.num_tokens if reference else 0),
            seconds=seconds(),
        )
    engine.close()


def _label(recipe: Recipe) -> str:
    """What the progress bar says: `search`, or the seed where there are several."""
    folder = search_directory(recipe).name
    return f"search {folder.replace('-', ' ')}" if folder.startswith("seed-") else "search"


def main() -> None:
    """Entry point of one rank under torchrun or the deepspeed launcher."""
    parser = argparse.ArgumentParser(prog="python -m train.search", description=main.__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, metavar="N", help="searches to average, with search.seed and the numbers after it")
    parser.add_argument("--replace", action="store_true", help="discard a search made from another recipe or other data")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the deepspeed launcher")
    options = parser.parse_args()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    prepare_environment()

    def joined() -> AbstractContextManager[None]:
        return process_group(rank=rank, world_size=world_size)

    def run_one(one: Recipe) -> None:
        with joined():
            _run_rank(one, rank=rank, world_size=world_size, replace=options.replace, quiet=False)

    try:
        if options.seeds is not None and options.seeds < 1:
            raise RecipeError(f"--seeds {options.seeds} is no number of searches; use 1 or more")
        recipe = load_recipe(options.recipe, options.overrides)
        catalog = catalog_of_workdir(recipe.workdir_path)
        check_search(recipe, catalog, num_ranks=world_size)
        if finished_mixture(recipe, catalog, num_seeds=options.seeds, replace=options.replace) is None:
            check_proxy(recipe, catalog)
            _search_seeds(
                recipe,
                catalog,
                run_one,
                num_seeds=options.seeds or 1,
                num_ranks=world_size,
                replace=options.replace,
                leads=rank == 0,
                meeting=joined,
            )
        if rank == 0:
            for warning in broken_limits(load_mixture(search_directory(recipe) / "mixture.json")):
                print(warning, file=sys.stderr)
    except FastmixError as error:
        if rank == 0:
            print(f"{'stopped' if isinstance(error, Interrupted) else 'error'}: {error}", file=sys.stderr)
        sys.exit(2)
    if world_size > 1:
        # The result is on disk and all ranks have met. Taking gloo's connections down while peers leave too has aborted a rank
        # on a busy machine, which a launcher reports as a failed run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
