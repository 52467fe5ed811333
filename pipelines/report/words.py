"""What the report says in words and tables."""

from __future__ import annotations

import numpy as np

from pipelines.report.format import duration, joined, percent, tokens
from pipelines.report.inputs import ReportInputs

_NAMED_SOURCES = 4
_ENOUGH = 0.9


def headline(inputs: ReportInputs) -> str:
    """The answer in one sentence."""
    mixture = inputs.mixture
    if mixture is None:
        num_tokens = tokens(sum(inputs.sizes.values()))
        return f"{len(inputs.sources)} sources with {num_tokens} training tokens are ready; their mixture is not known yet."
    named: list[str] = []
    for name in inputs.sources[:_NAMED_SOURCES]:
        if sum(mixture.weights[other] for other in named) < _ENOUGH:
            named.append(name)
    answer = f"The mixture is {joined([f'{percent(mixture.weights[name])} {name}' for name in named])}"
    rest = len(inputs.sources) - len(named)
    if not rest:
        return f"{answer}."
    share = percent(max(0.0, 1 - sum(mixture.weights[name] for name in named)))
    return f"{answer}; the other {rest} sources share {share}." if rest > 1 else f"{answer}; {inputs.sources[-1]} has {share}."


def lead(inputs: ReportInputs) -> str:
    """What it cost and what came of it, in a few sentences."""
    sentences: list[str] = []
    mixture, manifest = inputs.mixture, inputs.manifest
    if mixture is not None and mixture.num_updates:
        count, size = inputs.certainty.num_searches, tokens(mixture.num_parameters)
        trained = f"{count} proxies of {size} parameters each trained" if count > 1 else f"one proxy of {size} parameters trained"
        ranks = f"{mixture.world_size} rank{'s' if mixture.world_size > 1 else ''}"
        sentences.append(
            f"Learned while {trained}: {tokens(mixture.search_tokens)} tokens, "
            f"{duration(mixture.search_seconds)} on {ranks}, {mixture.num_updates} updates of the mixture in {mixture.num_steps} steps."
        )
        if mixture.start_trials:
            sentences.append(_trials(mixture.start_trials, num_searches=count))
        if inputs.certainty.stopped:
            sentences.append(f"The search ended: {inputs.certainty.stopped.rstrip('.')}.")
        loss = mixture.target_loss
        if {"unseen_start", "unseen_end"} <= loss.keys():
            sentences.append(
                f"On the half of the target that the search never saw, the proxy's loss went from {loss['unseen_start']:.3f} to "
                f"{loss['unseen_end']:.3f} nats per token."
            )
    elif mixture is not None:
        sentences.append("The mixture was given, not learned.")
    if manifest is not None:
        capped = [source.name for source in manifest.sources if source.capped]
        stopped = (
            f"; {_some(capped)} reached {'its cap' if len(capped) == 1 else 'their caps'}"
            if capped
            else "; no source reached its cap"
        )
        sentences.append(f"The manifest ships {tokens(manifest.num_tokens)} tokens{stopped}.")
    return " ".join(sentences)


def _trials(losses: dict[str, list[float]], *, num_searches: int) -> str:
    """How the start was chosen, by each of the searches."""
    means_by_power = {power: np.mean(np.reshape(found, (num_searches, -1)), axis=1) for power, found in losses.items()}
    chosen = [min(means_by_power, key=lambda power: means_by_power[power][search]) for search in range(num_searches)]
    if num_searches > 1:
        counts = joined([f"{chosen.count(power)} on {_raised(power)}" for power in losses])
        return f"Short trials decided where each search started: {counts}."
    (best,) = chosen
    beside = joined([f"{mean:.3f}" for power, (mean,) in means_by_power.items() if power != best])
    count = sum(len(found) for found in losses.values())
    return (
        f"Of {count} short trials, those on {_raised(best)} ended lower, at {means_by_power[best][0]:.3f} nats instead of {beside}: "
        "it started there."
    )


def _raised(power: str) -> str:
    return "the bigram mixture" if power == "1" else f"the bigram mixture raised to the power {power}"


def _some(names: list[str]) -> str:
    return joined(names) if len(names) <= 3 else f"{len(names)} sources"


def facts(inputs: ReportInputs) -> list[tuple[str, str]]:
    """The figures under the headline."""
    found = [("sources", f"{len(inputs.sources)}")]
    if inputs.sizes:
        found.append(("training tokens", tokens(sum(inputs.sizes.values()))))
    mixture = inputs.mixture
    if mixture is not None and mixture.num_updates:
        found += [
            ("search tokens", tokens(mixture.search_tokens)),
            ("search time", duration(mixture.search_seconds)),
            ("parameters", tokens(mixture.num_parameters)),
            ("ranks", f"{mixture.world_size}"),
            ("updates", f"{mixture.num_updates}"),
        ]
    if inputs.manifest is not None:
        found.append(("shipped tokens", tokens(inputs.manifest.num_tokens)))
    return found


def grouping(inputs: ReportInputs) -> str:
    """How the table's sources are grouped; empty where they are not."""
    if not inputs.groups:
        return ""
    return "as search.constraints.groups has them" if inputs.constrained_groups else "by the beginning of their names"


def provenance(inputs: ReportInputs) -> list[tuple[str, str]]:
    """Seeds, hashes and settings, as far as they are recorded."""
    catalog, mixture, manifest = inputs.catalog, inputs.mixture, inputs.manifest
    rows: list[tuple[str, str]] = []
    if catalog is not None:
        info = catalog.info
        rows += [
            ("catalog fingerprint", catalog.fingerprint),
            ("catalog's recipe", info.recipe_hash),
            ("input files", info.inputs_hash),
            ("tokenizer", f"{info.tokenizer_sha256} ({info.vocab_size:,} tokens)"),
            ("shards", f"{len(catalog.rows)} of {info.block_tokens}-token blocks"),
        ]
    if mixture is not None:
        rows += [
            ("method", mixture.method),
            ("search seed", "" if mixture.seed is None else str(mixture.seed)),
            ("search's recipe", mixture.recipe_hash),
            ("search's catalog", mixture.catalog_hash),
            ("trajectory", mixture.trajectory_sha256),
        ]
    targets = inputs.recipe.get("target", {})
    named = [*targets.get("sources", {}), *targets.get("files", {})]
    rows.append(("target", ", ".join(named)))
    rows += [(f"search.{key}", str(value)) for key, value in sorted(inputs.recipe.get("search", {}).items()) if value is not None]
    if manifest is not None:
        rows += [
            ("manifest", manifest.sha256),
            ("manifest's token budget", f"{manifest.token_budget:,}"),
            ("manifest's seed", str(manifest.seed)),
            ("manifest's mixture", manifest.mixture_hash),
            ("manifest's catalog", manifest.catalog_hash),
        ]
    return [(name, value) for name, value in rows if value]
