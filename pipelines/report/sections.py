"""The sections of the page in their order: heading and explanation of each plot."""

from __future__ import annotations

SECTIONS = {
    "weights": (
        "The mixture",
        "Share of training tokens of each source: what trials chose, or without trials the average over the search. The 90% intervals are "
        "of what this search leaves open and of what other documents of the target would change, not of how another seed would differ.",
    ),
    "groups": (
        "Groups of sources",
        "Total share of each group, with the bounds that the recipe sets, if any. The table below has the sources of each.",
    ),
    "trials": (
        "What trials say",
        "Short proxies were trained from scratch on each mixture, in pairs of one seed and one length, and measured on the target. The "
        "start stays the answer unless another mixture is better with 95% certainty; an interval that contains 0 is no difference.",
    ),
    "compare": (
        "Compared with other methods",
        "The target loss of fresh proxies trained on each method's mixture, on the half of the target that no search saw. Small dots: "
        "one seed each, against uniform with the same seed; bars: 90% Student intervals of their mean. The attainable gain is what the "
        "best of these methods gains over uniform. Tokens, floating point operations and time are those of the search alone.",
    ),
    "mixture": (
        "Where the scores led",
        "Share of each source after every update, as the proxy trained. The average is one of the mixtures that were tried; without trials "
        "it is the answer.",
    ),
    "loss": (
        "Loss",
        "Dots: the proxy's loss on fixed samples of the target before and after, on the half that drives the search and on the half "
        "that it never sees. Lines: the noisy loss of the target batch of each update, and of the training data between updates.",
    ),
    "targets": (
        "Targets",
        "Loss of each target in nats per token, estimated from the batches so far. The table has the losses on fixed samples; the "
        "reference run is a proxy of the same budget on the mixture that worst_case and not_worse_than compare with.",
    ),
    "target_weights": (
        "Weights of the targets",
        "How much each target's loss counts in the search. Under worst_case and not_worse_than the targets that fare badly against the "
        "reference run gain weight.",
    ),
    "manifest": (
        "What is shipped",
        "Tokens of each source in the manifest, and how often it is read. What a capped source cannot give goes to the others.",
    ),
    "scores": (
        "Scores",
        "How well a step on each source's gradient would lower the target's loss; above zero it helps. Running means over a twentieth "
        "of the search. Sources scored above the mixture's average gain weight.",
    ),
}
