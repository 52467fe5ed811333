"""What a source gives next: the rest of an epoch that was begun, then epoch after epoch. No block comes again before all others did.

An epoch has a number, of which the keys of its permutation are made. It can be served in several pieces, each a set of blocks that is
permuted by itself: what one phase takes of it, and what later ones take of the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastmix_data.manifest.block_set import BlockSet, SourceShards
from fastmix_data.manifest.epoch_draws import EpochDraws, epoch_keys
from fastmix_data.permutation import name_key


@dataclass(frozen=True)
class PlannedPool:
    """Blocks that are drawn in `repeats` epochs, one after the other, from draw `skip` of the first on; `stop` ends before them all.

    Attributes:
        num_tokens: of its draws.
    """

    blocks: BlockSet
    first_epoch: int
    num_tokens: int
    repeats: int = 1
    skip: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class HalfRead:
    """A set of blocks of which an epoch's first draws were served."""

    blocks: BlockSet
    draws: EpochDraws
    num_drawn: int

    @property
    def tokens_drawn(self) -> int:
        """Tokens that were served."""
        return self.draws.num_tokens(self.num_drawn)

    @property
    def tokens_left(self) -> int:
        """Tokens of the draws to come."""
        return self.blocks.num_tokens - self.tokens_drawn


@dataclass(frozen=True)
class SourceStream:
    """Where a source stands, and what it gives from there.

    Attributes:
        shards: all there is of it.
        seed: of the choice of blocks and of their order.
        name: of the source.
        epoch: number of the epoch that it is in; -1 before the first.
        rest: blocks of this epoch that are in no permutation yet.
        half_read: blocks of this epoch that are partly served; they come before `rest`.
    """

    shards: SourceShards
    seed: int
    name: str
    epoch: int
    rest: BlockSet
    half_read: HalfRead | None = None

    @classmethod
    def fresh(cls, shards: SourceShards, *, seed: int, name: str) -> SourceStream:
        """A source of which nothing was served."""
        return cls(shards, seed, name, -1, shards.nothing)

    @property
    def unique_tokens(self) -> int:
        """Tokens of one epoch."""
        return self.shards.everything.num_tokens

    def floor(self, tokens: int) -> int:
        """Largest realisable amount that is at most `tokens`."""
        return self._neighbours(tokens)[0] if tokens > 0 and self.unique_tokens else 0

    def nearest(self, tokens: int, *, cap: int) -> int:
        """Realisable amount nearest to `tokens` that is at most `cap`, which must be realisable; off by half a block at most."""
        # The tokens asked for carry the error of the sources before, so they can be below nothing or beyond the cap.
        if tokens <= 0 or tokens >= cap:
            return cap if tokens > 0 else 0
        below, above = self._neighbours(tokens)
        return above if above - tokens < tokens - below else below

    def _neighbours(self, tokens: int) -> tuple[int, int]:
        """Realisable amounts around `tokens`: the largest not above it, and the next; at most a block apart."""
        base = 0
        if self.half_read is not None:
            drawn, draws = self.half_read.tokens_drawn, self.half_read.draws
            if tokens < self.half_read.tokens_left:
                number = draws.num_draws(drawn + tokens)
                return draws.num_tokens(number) - drawn, draws.num_tokens(number + 1) - drawn
            base = self.half_read.tokens_left
        if tokens < base + self.rest.num_tokens:
            below, above = self.rest.neighbours(tokens - base)
            return base + below, base + above
        base += self.rest.num_tokens
        epochs, left = divmod(tokens - base, self.unique_tokens)
        base += epochs * self.unique_tokens
        below, above = self.shards.everything.neighbours(left)
        return base + below, base + above

    def take(self, tokens: int) -> tuple[list[PlannedPool], SourceStream]:
        """Cut a realisable amount off the stream.

        Returns:
            Its pools in the order in which they are drawn, and what is left.
        """
        stream, pools = self, list[PlannedPool]()
        for piece in (SourceStream._take_half_read, SourceStream._take_rest, SourceStream._take_epochs):
            if tokens:
                taken, stream = piece(stream, tokens)
                pools += taken
                tokens -= sum(pool.num_tokens for pool in taken)
        assert not tokens, "not a realisable amount"
        return pools, stream

    def _take_half_read(self, tokens: int) -> tuple[list[PlannedPool], SourceStream]:
        half = self.half_read
        if half is None:
            return [], self
        if tokens < half.tokens_left:
            stop = half.draws.num_draws(half.tokens_drawn + tokens)
            pool = PlannedPool(half.blocks, self.epoch, tokens, skip=half.num_drawn, stop=stop)
            return [pool], replace(self, half_read=replace(half, num_drawn=stop))
        # Epochs of the same blocks go on where this one ends: one pool says it all.
        goes_on = not self.rest.num_tokens and half.blocks.same_as(self.shards.everything)
        epochs = (tokens - half.tokens_left) // self.unique_tokens if goes_on else 0
        given = half.tokens_left + epochs * self.unique_tokens
        pool = PlannedPool(half.blocks, self.epoch, given, repeats=1 + epochs, skip=half.num_drawn)
        return [pool], replace(self, epoch=self.epoch + epochs, half_read=None)

    def _take_rest(self, tokens: int) -> tuple[list[PlannedPool], SourceStream]:
        if not self.rest.num_tokens:
            return [], self
        if tokens >= self.rest.num_tokens:
            return [PlannedPool(self.rest, self.epoch, self.rest.num_tokens)], replace(self, rest=self.shards.nothing)
        chosen = self.rest.choose(tokens, keys=self._keys(self.epoch))
        rest = self.shards.without(self.shards.without(self.rest), chosen)
        return [PlannedPool(chosen, self.epoch, tokens)], replace(self, rest=rest)

    def _take_epochs(self, tokens: int) -> tuple[list[PlannedPool], SourceStream]:
        everything, pools = self.shards.everything, list[PlannedPool]()
        epochs, left = divmod(tokens, self.unique_tokens)
        if epochs:
            pools.append(PlannedPool(everything, self.epoch + 1, epochs * self.unique_tokens, repeats=epochs))
        stream = replace(self, epoch=self.epoch + epochs)
        if left:
            last = stream.epoch + 1
            chosen = everything.choose(left, keys=self._keys(last))
            pools.append(PlannedPool(chosen, last, left))
            stream = replace(stream, epoch=last, rest=self.shards.without(chosen))
        return pools, stream

    def _keys(self, epoch: int) -> tuple[int, ...]:
        return self.seed, name_key(self.name), epoch

    def markers(self, *, sequence_length: int) -> list[PlannedPool]:
        """Pools without a draw that say where this stream stands: what of its epoch was served before."""
        if self.epoch < 0:
            return []
        half = self.half_read
        spent = self.shards.without(self.rest, *([] if half is None else [half.blocks]))
        found = list[PlannedPool]()
        if len(spent.shard_R):
            count = spent.num_sequences(sequence_length)
            found.append(PlannedPool(spent, self.epoch, 0, skip=count, stop=count))
        if half is not None:
            found.append(PlannedPool(half.blocks, self.epoch, 0, skip=half.num_drawn, stop=half.num_drawn))
        return found

    def after(self, blocks: BlockSet, *, epoch: int, num_drawn: int, sequence_length: int) -> SourceStream:
        """The same source when the first draws of these blocks were served in an epoch, its own or a later one.

        Args:
            num_drawn: at least one, unless the blocks hold no sequence at all.
        """
        here = self if epoch == self.epoch else replace(self, epoch=epoch, rest=self.shards.everything, half_read=None)
        rest = here.rest
        if here.half_read is None or not here.half_read.blocks.same_as(blocks):
            assert here.half_read is None or not here.half_read.tokens_left, "a permutation is finished before the next begins"
            rest = self.shards.without(self.shards.without(rest), blocks)
        key = epoch_keys(self.seed, name_key(self.name), epoch)
        draws = EpochDraws(blocks, sequence_length=sequence_length, key=key)
        half_read = HalfRead(blocks, draws, num_drawn) if num_drawn < draws.num_sequences else None
        return replace(here, rest=rest, half_read=half_read)
