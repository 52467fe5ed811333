"""The search: shards and target in, mixture and trajectory out.

`python -m train.search RECIPE` is one rank of a run that torchrun or the deepspeed launcher starts; `fastmix search` calls `search`,
which starts the ranks of this machine by itself.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmix_data.artefacts import hash_of, read_json, sha256_of_file, write_json
from fastmix_data.catalog import Catalog, catalog_of_workdir
from fastmix_data.errors import FastmixError, Interrupted, MismatchError, RecipeError
from fastmix_data.mixture import Mixture, load_mixture, save_mixture
from fastmix_data.progress import progress
from fastmix_data.recipe import Recipe
from fastmix_data.recipe_file import load_recipe
from fastmix_data.sequences import SequenceReader
from train.checkpoint import check_checkpoint, load_checkpoint, save_checkpoint
from train.engine import ProxyEngine, prepare_environment, process_group
from train.launch import launch_ranks
from train.mixture_optimizer import averaged_weights
from train.proxy import build_proxy, proxy_config
from train.proxy_run import ProxyRun, final_weights
from train.target import Target

_SECTIONS = ("target", "proxy", "deepspeed", "search")


@dataclass(frozen=True)
class SearchResult:
    """What a call of `search` came to."""

    mixture: Mixture
    did_work: bool
    message: str


def search_directory(recipe: Recipe) -> Path:
    """Folder of a workdir that holds mixture.json, trajectory.parquet and checkpoints."""
    return recipe.workdir_path / "search"


def recipe_hash(recipe: Recipe) -> str:
    """Hash of the sections of the recipe that a search depends on."""
    return hash_of({name: getattr(recipe, name).model_dump() for name in _SECTIONS})


def search(recipe: Recipe, *, num_ranks: int = 1, replace: bool = False, quiet: bool = False) -> SearchResult:
    """Learn the mixture of a preprocessed workdir, or go on with a search that was stopped.

    Args:
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
    done = _finished(recipe, catalog, replace=replace)
    if done is not None:
        return SearchResult(done, False, f"{directory / 'mixture.json'} is complete and matches the recipe; nothing to do")
    with _only_search(directory):
        if not replace:
            check_checkpoint(directory / "checkpoints", identity=_identity(recipe, catalog, num_ranks))
        elif not _checkpoint_matches(directory / "checkpoints", _identity(recipe, catalog, num_ranks)):
            shutil.rmtree(directory / "checkpoints", ignore_errors=True)
        if num_ranks == 1:
            with process_group(rank=0, world_size=1):
                _run_rank(recipe, quiet=quiet)
        else:
            launch_ranks(_run_launched, recipe, quiet, num_ranks=num_ranks)
    mixture = load_mixture(directory / "mixture.json")
    return SearchResult(mixture, True, f"wrote {directory / 'mixture.json'}")


def check_search(recipe: Recipe, catalog: Catalog, *, num_ranks: int) -> None:
    """Refuse what cannot work, before a model is built.

    Raises:
        RecipeError: a batch cannot be divided over the ranks, or the proxy does not fit the tokenizer.
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
    proxy_config(
        recipe.proxy,
        resolve=recipe.resolve,
        vocab_size=catalog.info.vocab_size,
        sequence_length=settings.sequence_length,
    )


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


def _finished(recipe: Recipe, catalog: Catalog, *, replace: bool) -> Mixture | None:
    """A complete mixture of this recipe and data, if there is one."""
    path = search_directory(recipe) / "mixture.json"
    if not path.exists():
        return None
    mixture = load_mixture(path)
    differing = [
        what
        for what, then, now in (
            ("data", mixture.catalog_hash, catalog.fingerprint),
            ("recipe", mixture.recipe_hash, recipe_hash(recipe)),
        )
        if then != now
    ]
    if not differing:
        return mixture
    if not replace:
        changed = _changed_keys(recipe)
        raise MismatchError(
            f"{path}: made with another {' and '.join(differing)}{f' ({changed})' if changed else ''}; give another workdir, or start "
            "afresh with --replace"
        )
    path.unlink()
    return None


def _changed_keys(recipe: Recipe) -> str:
    """Names of the keys that differ from the recipe saved beside the mixture, as far as it is there."""
    path = search_directory(recipe) / "recipe.json"
    if not path.exists():
        return ""
    then = read_json(path)
    now = {name: getattr(recipe, name).model_dump(mode="json") for name in _SECTIONS}
    return ", ".join(
        f"{section}.{key}" for section in _SECTIONS for key in now[section] if then.get(section, {}).get(key) != now[section][key]
    )


def _identity(recipe: Recipe, catalog: Catalog, num_ranks: int) -> dict[str, Any]:
    return {"recipe": recipe_hash(recipe), "data": catalog.fingerprint, "number_of_ranks": num_ranks}


def _checkpoint_matches(directory: Path, identity: dict[str, Any]) -> bool:
    try:
        check_checkpoint(directory, identity=identity)
    except MismatchError:
        return False
    return True


@contextmanager
def _only_search(directory: Path) -> Iterator[None]:
    """Hold the workdir's lock; the system drops it when the process ends, however it ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FastmixError(f"{directory}: another search is running here; wait for it or choose another workdir") from error
        yield


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


def _run_launched(recipe: Recipe, quiet: bool, rank: int, world_size: int, rendezvous: str) -> None:
    with process_group(rank=rank, world_size=world_size, rendezvous=rendezvous):
        _run_rank(recipe, quiet=quiet)


def _run_rank(recipe: Recipe, *, quiet: bool) -> None:
    """One rank, from model to mixture."""
    started = time.monotonic()
    catalog, settings = catalog_of_workdir(recipe.workdir_path), recipe.search
    import torch.distributed as dist

    size = micro_batch(recipe, dist.get_world_size())
    config = proxy_config(
        recipe.proxy, resolve=recipe.resolve, vocab_size=catalog.info.vocab_size, sequence_length=settings.sequence_length
    )
    model = build_proxy(recipe.proxy, config=config, resolve=recipe.resolve, seed=settings.seed)
    engine = ProxyEngine(model, search=settings, deepspeed=recipe.deepspeed, micro_batch=size)
    target = Target(
        catalog,
        weights=recipe.target.weights(),
        sequence_length=settings.sequence_length,
        target_batch=settings.target_batch,
        micro_batch=size,
        seed=settings.seed,
    )
    run = ProxyRun(catalog, search=settings, engine=engine, target=target)
    checkpoints = search_directory(recipe) / "checkpoints"
    identity = _identity(recipe, catalog, engine.world_size)
    if engine.rank == 0:
        write_json(
            search_directory(recipe) / "recipe.json",
            {name: getattr(recipe, name).model_dump(mode="json") for name in _SECTIONS},
        )
    saved = load_checkpoint(checkpoints, identity=identity, engine=engine)
    if saved is None:
        seconds_before, losses = 0.0, _target_losses(target, engine, "start", settings.eval_sequences)
    else:
        run.load_state_dict(saved["run"])
        seconds_before, losses = saved["seconds"], saved["losses"]

    def checkpoint() -> None:
        state = {"run": run.state_dict(), "losses": losses, "seconds": seconds_before + time.monotonic() - started}
        save_checkpoint(checkpoints, step=run.step, state=state, identity=identity, engine=engine)

    tokens_per_step = settings.global_batch * settings.sequence_length
    with (
        _stop_on_signal() as stop_asked,
        progress(
            "search",
            total=settings.num_steps * tokens_per_step,
            done=run.step * tokens_per_step,
            quiet=quiet or engine.rank > 0,
        ) as advance,
    ):
        finished = run.run(advance=advance, stop_asked=stop_asked, checkpoint=checkpoint)
    if not finished:
        raise Interrupted(
            f"stopped at step {run.step} of {settings.num_steps}, which is saved; the same command goes on from there"
        )
    losses = losses | _target_losses(target, engine, "end", settings.eval_sequences)
    if engine.rank == 0:
        seconds = seconds_before + time.monotonic() - started
        _write_result(recipe, catalog, run=run, target=target, engine=engine, losses=losses, seconds=seconds)
    engine.barrier()


def _target_losses(target: Target, engine: ProxyEngine, when: str, num_sequences: int) -> dict[str, float]:
    return {
        f"search_{when}": target.evaluate(engine, half="search", num_sequences=num_sequences),
        f"unseen_{when}": target.evaluate(engine, half="unseen", num_sequences=num_sequences),
    }


def _write_result(
    recipe: Recipe,
    catalog: Catalog,
    *,
    run: ProxyRun,
    target: Target,
    engine: ProxyEngine,
    losses: dict[str, float],
    seconds: float,
) -> None:
    """Write trajectory and, last, the mixture; checkpoints have served then."""
    directory, settings = search_directory(recipe), recipe.search
    run.trajectory.save(directory / "trajectory.parquet", sources=catalog.sources)
    mean_K, low_K, high_K = averaged_weights(final_weights(run.trajectory, search=settings), seed=settings.seed)
    mixture = Mixture(
        weights=dict(zip(catalog.sources, mean_K.tolist(), strict=True)),
        interval={name: (low, high) for name, low, high in zip(catalog.sources, low_K.tolist(), high_K.tolist(), strict=True)},
        method=f"fastmix ({settings.hypergradient} parameters)",
        seed=settings.seed,
        search_tokens=run.step * settings.global_batch * settings.sequence_length + target.num_tokens_read,
        search_seconds=round(seconds, 3),
        num_steps=run.step,
        num_updates=run.mixture.num_updates,
        target_loss=losses,
        num_parameters=engine.num_parameters,
        world_size=engine.world_size,
        catalog_hash=catalog.fingerprint,
        recipe_hash=recipe_hash(recipe),
        trajectory_sha256=sha256_of_file(directory / "trajectory.parquet"),
    )
    save_mixture(directory / "mixture.json", mixture)
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def main() -> None:
    """Entry point of one rank under torchrun or the deepspeed launcher."""
    parser = argparse.ArgumentParser(prog="python -m train.search", description=main.__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--replace", action="store_true", help="discard a search made from another recipe or other data")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the deepspeed launcher")
    options = parser.parse_args()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    prepare_environment()
    try:
        recipe = load_recipe(options.recipe, options.overrides)
        catalog = catalog_of_workdir(recipe.workdir_path)
        check_search(recipe, catalog, num_ranks=world_size)
        if _finished(recipe, catalog, replace=options.replace and rank == 0) is None:
            with process_group(rank=rank, world_size=world_size):
                _run_rank(recipe, quiet=False)
    except FastmixError as error:
        if rank == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
