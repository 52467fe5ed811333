"""Several ways to halve the documents of a target, so that what one half says can be held against the other."""

from __future__ import annotations

import numpy as np
from scipy.linalg import hadamard

from fastmix_data.arrays import Bools, Int64s
from fastmix_data.shards.sequences import SequenceReader

_MOST_GROUPS = 8
_READ_AT_ONCE, _MOST_READ = 1024, 1 << 22  # sequences; tokens


def balanced_halvings(num_documents: int) -> Bools:
    """Halves of up to 8 groups of documents: each group is in half of them, and any two are together in half of those.

    Differences between a half and the other one are then independent from one halving to the next (McCarthy, "Pseudo-replication: Half
    Samples", 1969).

    Returns:
        Which groups a half has, shape (S, J) with J groups and S = 2 (J - 1); a half is followed by the other one. (0, 1) for one document.

    >>> balanced_halvings(3).tolist(), balanced_halvings(9).shape, balanced_halvings(1).shape
    ([[True, False], [False, True]], (14, 8), (0, 1))
    """
    num_groups = 1
    while 2 * num_groups <= min(num_documents, _MOST_GROUPS):
        num_groups *= 2
    first_RJ = hadamard(num_groups)[1:] > 0
    halves_SJ: Bools = np.stack([first_RJ, ~first_RJ], axis=1).reshape(-1, num_groups)
    return halves_SJ


def runs_of_documents(reader: SequenceReader, source: int, *, sequence_length: int, eos_id: int) -> Int64s:
    """Number of the run that each sequence of a source belongs to, from 0, shape (N,): neighbours that begin in the same document are one.

    Of a source beyond 2^22 tokens, whose documents are many, every sequence counts as a run of its own; of examples, each is one.
    """
    num_sequences = int(reader.num_sequences_K[source])
    if reader.has_examples_K[source] or num_sequences * sequence_length > _MOST_READ:
        return np.arange(num_sequences)
    has_end_N = np.zeros(num_sequences, np.bool_)
    for start in range(0, num_sequences, _READ_AT_ONCE):
        numbers_N = np.arange(start, min(start + _READ_AT_ONCE, num_sequences))
        tokens_NS = reader.read(np.full(len(numbers_N), source, np.int64), numbers_N).tokens_BS
        has_end_N[numbers_N] = (tokens_NS[:, :-1] == eos_id).any(axis=1)
    run_N: Int64s = np.cumsum(has_end_N) - has_end_N
    return run_N
