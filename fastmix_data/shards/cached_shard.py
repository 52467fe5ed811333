"""Sequences of shards that lie in a store: only the bytes of what is asked for are fetched, and kept as slots of the cache."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import xxhash

from fastmix_data.errors import CorruptArtefactError
from fastmix_data.foreign.storage import Stored
from fastmix_data.remote.object_store import StoredObject
from fastmix_data.remote.shard_store import OpenStore, ShardStore, name_in_store
from fastmix_data.shards.shard_format import NAME_BYTES, SequenceViews, ShardLayout, tag_digits

_MOST_FETCHED = 1.05  # bytes of a request over those that were asked for; with windows that are not used up, 1.1 in all
_MOST_FETCHED_WITH_NAMES = 1.3  # a name and its block's array are one request
_FETCHED_AT_ONCE = 8 << 20
_LOCKED_AT_ONCE = 512


class Neighbours(NamedTuple):
    """Which sequences of a shard are fetched together, since all of them are going to be read here.

    Sequence n of the shard is number `base + n` of a line that is cut into windows of `window`; of them, `first` to `last` may be fetched.
    A window of 1 fetches what is asked for alone.
    """

    window: int
    base: int
    first: int
    last: int

    def around(self, slot: int, *, at_most: int) -> range:
        """The sequences to fetch when one is asked for.

        >>> Neighbours(window=10, base=5, first=0, last=12).around(7, at_most=100)
        range(5, 12)
        """
        place = (self.base + slot) % self.window
        part = max(1, min(self.window, at_most))
        start = slot - place + place // part * part
        return range(max(self.first, start), min(self.last, start + part, slot - place + self.window))


class _Member(NamedTuple):
    """Where the values of one array lie: of a sequence in its block and in its slot, in bytes."""

    block_offset: int
    sequence_bytes: int  # from one sequence of a block to the next
    num_bytes: int
    slot_offset: int
    dtype: np.dtype[Any]


class CachedShard:
    """A shard of a store, cut into sequences.

    Attributes:
        stored: its row of the catalog, or a part of a manifest.
        layout: of its file.
        neighbours: what is fetched with a sequence.
        key, slot_bytes: of its slots in the cache.
    """

    def __init__(
        self,
        store: ShardStore,
        stored: Stored,
        *,
        layout: ShardLayout,
        length: int,
        neighbours: Neighbours,
        has_tags: bool = False,
    ) -> None:
        """Work out where everything lies; nothing is looked up.

        Args:
            has_tags: fetch the names of the blocks too, which end with a tag. Such shards are read from front to back, with all that
                lies between their arrays.
        """
        self._store, self.stored, self.layout, self.neighbours = store, stored, layout, neighbours
        self._length, self._per_block = length, layout.block_tokens // length
        self._members: list[_Member] = []
        self.slot_bytes = 0
        for member in layout.members:
            itemsize = member.dtype.itemsize
            size = (length + 1) * itemsize
            self._members.append(_Member(member.data_offset, length * itemsize, size, self.slot_bytes, member.dtype))
            self.slot_bytes += size
        self._has_tags = has_tags
        if has_tags:
            self._members.append(_Member(0, 0, NAME_BYTES, self.slot_bytes, np.dtype("u1")))
            self.slot_bytes += NAME_BYTES
        identity = (
            store.url,
            stored.path,
            stored.sha256,
            layout.block_tokens,
            layout.dtype.str,
            layout.has_mask,
            length,
            has_tags,
        )
        self.key = xxhash.xxh3_128_hexdigest("\0".join(map(str, identity)).encode(errors="surrogateescape"))

    @property
    def opened(self) -> OpenStore:
        """The store as this process reads it."""
        return self._store.opened

    def slot(self, block: int, within: int) -> int:
        """Number of a sequence in the shard."""
        return block * self._per_block + within

    def intervals(self, slot: int) -> list[tuple[int, int]]:
        """Where the bytes of a sequence lie in the file, one range for each array."""
        block, within = divmod(slot, self._per_block)
        starts = [block * self.layout.stride + m.block_offset + within * m.sequence_bytes for m in self._members]
        return [(start, start + m.num_bytes) for start, m in zip(starts, self._members, strict=True)]

    def arrays(self, content: bytes) -> tuple[Any, ...]:
        """Tokens, and mask and starts where there are any, of a slot's content; None in their place where not."""
        members = self._members[:-1] if self._has_tags else self._members
        found = [np.frombuffer(content, m.dtype, self._length + 1, m.slot_offset) for m in members]
        return (*found, *([None] * (3 - len(found))))

    def tag(self, content: bytes) -> npt.NDArray[np.uint8] | None:
        """The digits, as ASCII, of the tag in a slot's content, if it has one."""
        return tag_digits(content[self._members[-1].slot_offset :]) if self._has_tags else None

    def requests(self, slots: Iterable[int]) -> list[tuple[int, int]]:
        """Ranges of the file to ask for."""
        intervals = (interval for slot in slots for interval in self.intervals(slot))
        if not self._has_tags:
            return merged(intervals)
        return merged(intervals, most_fetched=float("inf") if self.neighbours.window > 1 else _MOST_FETCHED_WITH_NAMES)

    def check(self, found: StoredObject, *, known: str | None) -> None:
        """Refuse an object that is not the shard.

        Args:
            known: version of the object that slots of the cache are from.

        Raises:
            CorruptArtefactError: it has another size; or it is another version, and has not the shard's hash.
        """
        objects, name = self.opened.objects, name_in_store(self.stored.path)
        remedy = "copy WORKDIR/shards there again, or run `fastmix preprocess` if it is that which changed"
        if found.num_bytes != self.stored.bytes:
            problem = f"has {found.num_bytes} bytes, the catalog says {self.stored.bytes}"
            raise CorruptArtefactError(objects.address(name), problem, remedy)
        if known is None or known == found.version:
            return
        # Copied once more, an object may have another version and be the same: its bytes decide, once.
        if objects.sha256(name, found) != self.stored.sha256:
            problem = "changed since it was first read, and has not the sha256 that the catalog says"
            raise CorruptArtefactError(objects.address(name), problem, remedy)


def merged(intervals: Iterable[tuple[int, int]], *, most_fetched: float = _MOST_FETCHED) -> list[tuple[int, int]]:
    """Ranges that hold all of some ranges in few requests, none of which fetches more than so many times what it is for.

    >>> merged([(0, 100), (105, 205), (230, 330)])
    [(0, 205), (230, 330)]
    """
    pieces: list[tuple[int, int]] = []
    for start, stop in sorted(intervals):
        # What touches is one piece first: a block of many sequences is worth the gap before it, its first sequence alone may not be.
        if pieces and start <= pieces[-1][1]:
            pieces[-1] = (pieces[-1][0], max(stop, pieces[-1][1]))
        else:
            pieces.append((start, stop))
    runs: list[tuple[int, int]] = []
    useful = 0
    for start, stop in pieces:
        wanted = useful + stop - start
        if runs and stop - runs[-1][0] <= min(most_fetched * wanted, _FETCHED_AT_ONCE):
            runs[-1], useful = (runs[-1][0], stop), wanted
        else:
            runs.append((start, stop))
            useful = stop - start
    return runs


Wanted = tuple[CachedShard, int]


def contents_of(wanted: Sequence[Wanted]) -> dict[Wanted, bytes]:
    """Contents of slots, from the cache or fetched with their neighbours, many requests at once.

    Raises:
        CorruptArtefactError: an object is missing, or is not the shard.
        InputError, FastmixError: as `ObjectStore`.
    """
    contents: dict[Wanted, bytes] = {}
    missing = _add_cached(wanted, contents)
    for begin in range(0, len(missing), _LOCKED_AT_ONCE):
        piece = missing[begin : begin + _LOCKED_AT_ONCE]
        slots = piece[0][0].opened.slots
        # Ranks that share a cache read the same windows at about the same time: the first one fetches for all.
        with slots.alone(f"{shard.key}:{_unit(shard, slot).start}" for shard, slot in piece):
            _fetch(_add_cached(piece, contents), contents)
    return contents


def _add_cached(wanted: Sequence[Wanted], contents: dict[Wanted, bytes]) -> list[Wanted]:
    missing = []
    for shard, slot in wanted:
        content = shard.opened.slots.get(shard.key, slot, slot_bytes=shard.slot_bytes)
        if content is None:
            missing.append((shard, slot))
        else:
            contents[shard, slot] = content
    return missing


def _unit(shard: CachedShard, slot: int) -> range:
    if not shard.opened.slots.keeps:
        return range(slot, slot + 1)
    return shard.neighbours.around(slot, at_most=max(1, _FETCHED_AT_ONCE // shard.slot_bytes))


def _fetch(missing: Sequence[Wanted], contents: dict[Wanted, bytes]) -> None:
    if not missing:
        return
    opened = missing[0][0].opened
    units: dict[CachedShard, set[range]] = {}
    for shard, slot in missing:
        units.setdefault(shard, set()).add(_unit(shard, slot))
    found = dict(
        zip(units, opened.at_once(_find, [(shard, min(unit.start for unit in units[shard])) for shard in units]), strict=True)
    )
    asked = set(missing)
    slots_of = {shard: sorted(slot for unit in units[shard] for slot in unit) for shard in units}
    runs = [(shard, run) for shard, slots in slots_of.items() for run in shard.requests(slots)]

    def read(task: tuple[CachedShard, tuple[int, int]]) -> bytes:
        shard, (start, stop) = task
        return opened.objects.read(name_in_store(shard.stored.path), found[shard], start=start, stop=stop)

    pieces: dict[CachedShard, list[tuple[int, bytes]]] = {}
    for (shard, run), content in zip(runs, opened.at_once(read, runs), strict=True):
        pieces.setdefault(shard, []).append((run[0], content))
    for shard, slots in slots_of.items():
        fetched = dict(zip(slots, _cut(shard, slots, pieces[shard]), strict=True))
        contents |= {(shard, slot): content for slot, content in fetched.items() if (shard, slot) in asked}
        opened.slots.put(shard.key, fetched, version=found[shard].version)


def _find(wanted: Wanted) -> StoredObject:
    shard, slot = wanted
    opened = shard.opened
    found, is_new = opened.find(shard.stored.path)
    if is_new:
        shard.check(found, known=opened.slots.version(shard.key, slot, slot_bytes=shard.slot_bytes))
    return found


def _cut(shard: CachedShard, slots: Sequence[int], pieces: Sequence[tuple[int, bytes]]) -> list[bytes]:
    starts = [start for start, _ in pieces]

    def part(interval: tuple[int, int]) -> bytes:
        first, content = pieces[bisect_right(starts, interval[0]) - 1]
        return content[interval[0] - first : interval[1] - first]

    return [b"".join(map(part, shard.intervals(slot))) for slot in slots]


class _Held:
    """One array of some sequences of a shard: answers `[block, within]` and `[block, within, columns]` as that of all of them would."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, int], Any] = {}

    def __getitem__(self, key: tuple[Any, ...]) -> Any:
        return self.found[key[:2]][key[2:]]


class Fetched:
    """Views of shards by their number, in which those of a store have the sequences that were asked for.

    Attributes:
        tags: digits of the tags of blocks, by shard and block, where shards have some.
    """

    def __init__(self, opened: Callable[[int], SequenceViews | CachedShard], places: Iterable[tuple[int, int, int]]) -> None:
        """Fetch what is not in the cache, many requests at once; raises as `contents_of`.

        Args:
            places: shard, block of the shard, and sequence within the block.
        """
        self._views: dict[int, SequenceViews] = {}
        self.tags: dict[int, dict[int, npt.NDArray[np.uint8]]] = {}
        shards: dict[int, SequenceViews | CachedShard] = {}
        wanted: dict[tuple[int, int, int], Wanted] = {}
        for place in places:
            number, block, within = place
            shard = shards.get(number)
            if shard is None:
                shard = shards[number] = opened(number)
            if isinstance(shard, CachedShard):
                wanted[place] = (shard, shard.slot(block, within))
            else:
                self._views[number] = shard
        contents = contents_of(list(dict.fromkeys(wanted.values())))
        held: dict[int, tuple[_Held, _Held, _Held]] = {}
        for (number, block, within), (cached, slot) in wanted.items():
            content = contents[cached, slot]
            if number not in held:
                held[number] = (_Held(), _Held(), _Held())
                tokens, mask, starts = cast(tuple[Any, Any, Any], held[number])
                has_mask = cached.layout.has_mask
                self._views[number] = SequenceViews(tokens, mask if has_mask else None, starts if has_mask else None)
            for array, values in zip(held[number], cached.arrays(content), strict=True):
                array.found[block, within] = values
            if (digits := cached.tag(content)) is not None:
                self.tags.setdefault(number, {})[block] = digits

    def __call__(self, number: int) -> SequenceViews:
        """The views of a shard."""
        return self._views[number]
