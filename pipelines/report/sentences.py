"""What the report says in words: headline, lead, figures and provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from fastmix_data.messages import joined
from fastmix_data.results.mixture import TRIED, Mixture, TrialsRecord
from fastmix_data.results.search_progress import STAGES, SearchProgress
from pipelines.report.format import duration, percent, tokens
from pipelines.report.inputs import ReportInputs

_NAMED_SOURCES = 4
_ENOUGH = 0.9
_MOST_CAPPED = 3


def headline(inputs: ReportInputs) -> str:
    """The answer in one sentence."""
    mixture, progress = inputs.mixture, inputs.progress
    if mixture is None and progress is not None:
        how = "is running" if progress.state == "running" else f"has {progress.state}"
        weights = dict(zip(progress.sources, progress.weights_K.tolist(), strict=True))
        leading = joined([f"{percent(weights[name])} {name}" for name in _named(inputs.sources, weights)])
        so_far = f"; so far the mixture is {leading}" if progress.updates else ""
        return f"The search {how}, {progress.share_done:.0%} done{so_far}."
    if mixture is None:
        num_tokens = f"{'about ' if inputs.estimated else ''}{tokens(sum(inputs.sizes.values()))}"
        return f"{len(inputs.sources)} sources with {num_tokens} training tokens are ready; their mixture is not known yet."
    named = _named(inputs.sources, mixture.weights)
    answer = f"The mixture is {joined([f'{percent(mixture.weights[name])} {name}' for name in named])}"
    rest = len(inputs.sources) - len(named)
    if not rest:
        return f"{answer}."
    share = percent(max(0.0, 1 - sum(mixture.weights[name] for name in named)))
    return f"{answer}; the other {rest} sources share {share}." if rest > 1 else f"{answer}; {inputs.sources[-1]} has {share}."


def _named(sources: Sequence[str], weights: Mapping[str, float]) -> list[str]:
    """The first sources, by falling weight, that are most of the mixture."""
    named: list[str] = []
    for name in sources[:_NAMED_SOURCES]:
        if sum(weights[other] for other in named) < _ENOUGH:
            named.append(name)
    return named


def lead(inputs: ReportInputs) -> str:
    """What it cost and what came of it, in a few sentences."""
    sentences: list[str] = []
    mixture, manifest = inputs.mixture, inputs.manifest
    if mixture is not None:
        sentences += _about_search(mixture) if mixture.search.num_updates else ["The mixture was given, not learned."]
    elif inputs.progress is not None:
        sentences += _about_progress(inputs.progress)
    if manifest is not None:
        capped = [source.name for source in manifest.sources if source.capped]
        which = joined(capped) if 0 < len(capped) <= _MOST_CAPPED else f"{len(capped)} sources" if capped else "no source"
        whose = "their caps" if len(capped) > 1 else "its cap"
        sentences.append(f"The manifest ships {tokens(manifest.num_tokens)} tokens; {which} reached {whose}.")
    elif inputs.plan is not None:
        planned = tokens(inputs.plan.num_tokens)
        sentences.append(f"A manifest of {planned} tokens is planned; how often it reads each source is estimated from a sample.")
    return " ".join(sentences)


def _about_progress(progress: SearchProgress) -> list[str]:
    """How far a search is that has not ended."""
    last, rates = progress.last, progress.rates
    assert last is not None
    at = datetime.fromtimestamp(last["time"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    count = len(progress.updates)
    told = f"{STAGES.get(progress.stage, progress.stage)}, {tokens(last['tokens'])} of {tokens(last['total_tokens'])} training tokens"
    sentences = [f"As of {at}: {told}, {count} update{'' if count == 1 else 's'} of the mixture."]
    if progress.end is not None:
        message = str(progress.end["message"])
        sentences.append(f"{message[:1].upper()}{message[1:].rstrip('.')}.")
    elif rates.get("seconds_left") is not None:
        speed = f"{tokens(rates['tokens_per_second'])} tokens per second"
        sentences.append(f"At {speed} it is done in {duration(rates['seconds_left'])} at most.")
    if progress.trials:
        sentences.append(f"{len(progress.trials)} trial{'' if len(progress.trials) == 1 else 's'} made so far.")
    return sentences


def _about_search(mixture: Mixture) -> list[str]:
    """What one search or several took, how they began and ended, and what the proxy gained."""
    search, loss, count = mixture.search, mixture.target.loss, mixture.certainty.num_searches
    size = tokens(search.num_parameters)
    trained = f"{count} proxies of {size} parameters each trained" if count > 1 else f"one proxy of {size} parameters trained"
    ranks = f"{search.world_size} rank{'s' if search.world_size > 1 else ''}"
    sentences = [
        f"Learned while {trained}: {tokens(search.num_tokens)} tokens, {duration(search.seconds)} on {ranks}, "
        f"{search.num_updates} updates of the mixture in {search.num_steps} steps."
    ]
    if mixture.trials is not None:
        sentences.append(about_trials(mixture.trials))
    if search.stopped:
        sentences.append(f"The search ended: {search.stopped.rstrip('.')}.")
    if {"unseen_start", "unseen_end"} <= loss.keys():
        sentences.append(
            f"On the half of the target that the search never saw, the proxy's loss went from {loss['unseen_start']:.3f} to "
            f"{loss['unseen_end']:.3f} nats per loss token."
        )
    return sentences


def about_trials(trials: TrialsRecord) -> str:
    """What the trials decided, with no claim below their noise; the table has pairs and intervals."""
    ahead = [f"{TRIED[name]} by {mean:.3f}" for name, (mean, low, _) in trials.ahead.items() if low > 0]
    level = [TRIED[name] for name, (_, low, _) in trials.ahead.items() if low <= 0]
    claim = f": it is ahead of {joined(ahead)} nats" if ahead else ""
    doubt = f" It cannot be told from {joined(level)}." if level else ""
    return f"The answer is {TRIED[trials.winner]}, by {trials.num_trials} short trials{claim}.{doubt}"


def facts(inputs: ReportInputs) -> list[tuple[str, str]]:
    """The figures under the headline."""
    found = [("sources", f"{len(inputs.sources)}")]
    if inputs.sizes:
        found.append((f"training tokens{_estimated(inputs)}", tokens(sum(inputs.sizes.values()))))
    found += [
        (f"{unit.replace('_', ' ')}{_estimated(inputs)}", tokens(sum(counts.values())))
        for unit, counts in inputs.unit_counts.items()
    ]
    if inputs.mixture is not None and inputs.mixture.search.num_updates:
        search = inputs.mixture.search
        found += [
            ("search tokens", tokens(search.num_tokens)),
            ("search time", duration(search.seconds)),
            ("parameters", tokens(search.num_parameters)),
            ("ranks", f"{search.world_size}"),
            ("updates", f"{search.num_updates}"),
        ]
    if inputs.progress is not None:
        found += [("done", f"{inputs.progress.share_done:.0%}"), ("updates", f"{len(inputs.progress.updates)}")]
    if inputs.manifest is not None:
        found.append(("shipped tokens", tokens(inputs.manifest.num_tokens)))
    return found


def _estimated(inputs: ReportInputs) -> str:
    return ", estimated" if inputs.estimated else ""


def grouping(inputs: ReportInputs) -> str:
    """How the table's sources are grouped; empty where they are not."""
    if not inputs.groups:
        return ""
    return "as search.constraints.groups has them" if inputs.constrained_groups else "by the beginning of their names"


def provenance(inputs: ReportInputs) -> list[tuple[str, str]]:
    """Seeds, hashes and settings, as far as they are recorded."""
    catalog, mixture, recipe, manifest = inputs.catalog, inputs.mixture, inputs.recipe, inputs.manifest
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
            ("search seed", "" if mixture.search.seed is None else str(mixture.search.seed)),
            ("search's recipe", mixture.made_from.recipe),
            ("search's catalog", mixture.made_from.catalog),
            ("trajectory", mixture.made_from.trajectory),
        ]
    if recipe is not None:
        rows.append(("target", ", ".join(recipe.target.weights())))
        for name, section in (("training", recipe.training), ("search", recipe.search)):
            settings = section.model_dump(mode="json")
            rows += [(f"{name}.{key}", str(value)) for key, value in sorted(settings.items()) if value is not None]
    if manifest is not None:
        rows += [
            ("manifest", manifest.sha256),
            ("manifest's token budget", f"{manifest.token_budget:,}"),
            ("manifest's seed", str(manifest.seed)),
            ("manifest's mixture", manifest.mixture_hash),
            ("manifest's catalog", manifest.catalog_hash),
        ]
    return [(name, value) for name, value in rows if value]
