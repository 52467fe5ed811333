"""The cache stays within its bound, and gives what was put in or nothing, whatever happens to its processes, files and disk."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastmix_data.errors import FastmixError
from fastmix_data.remote.slot_files import SlotFiles
from tests.small_disk import small_disk

SLOT = 1000


def content(key: int, slot: int) -> bytes:
    return random.Random(key * 1000 + slot).randbytes(SLOT)


def size_of(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # removed a moment ago
            total += path.stat().st_blocks * 512
    return total


def newest(folder: Path) -> float:
    """When a file of slots was last written to."""
    with contextlib.suppress(FileNotFoundError):
        return max((path.stat().st_mtime for path in folder.glob("key*")), default=0.0)
    return 0.0


def fill(folder: Path, max_bytes: int, seed: int) -> None:
    """Read and write at random until it is killed; ends with an error where something else comes back than was put in."""
    cache, rng = SlotFiles(folder, max_bytes=max_bytes, most_open=16), random.Random(seed)
    while True:
        key, slot = rng.randrange(60), rng.randrange(40)
        found = cache.get(f"key{key}", slot, slot_bytes=SLOT)
        if found is None:
            run = range(slot, min(40, slot + rng.randrange(1, 8)))
            with cache.alone([f"{key}"]):
                cache.put(f"key{key}", {number: content(key, number) for number in run}, version="v")
        else:
            assert found == content(key, slot)


def test_processes_that_are_killed_leave_a_cache_within_its_bound_and_without_a_wrong_byte(tmp_path: Path) -> None:
    bound = 1 << 20  # of 2.4 MB that are wanted
    command = [sys.executable, "-c", "import sys; from pathlib import Path; from test_slot_files import fill; "]
    command[-1] += "fill(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    for round_number in range(2):
        begun = time.time()
        started = [
            subprocess.Popen([*command, str(tmp_path), str(bound), str(round_number * 3 + number)], env=environment)
            for number in range(3)
        ]
        while newest(tmp_path) < begun:
            time.sleep(0.05)
        for _ in range(10):
            time.sleep(0.1)
            assert size_of(tmp_path) <= bound
        for process in started:
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
    cache = SlotFiles(tmp_path, max_bytes=bound, most_open=16)
    found = {(key, slot): cache.get(f"key{key}", slot, slot_bytes=SLOT) for key in range(60) for slot in range(40)}
    kept = {place: value for place, value in found.items() if value is not None}
    assert kept and all(value == content(*place) for place, value in kept.items())


def test_what_was_used_last_is_kept(tmp_path: Path) -> None:
    cache = SlotFiles(tmp_path, max_bytes=1 << 20, most_open=2)
    cache.put("mine", {0: content(0, 0)}, version="v")
    for number in range(400):
        cache.put(f"other{number}", {0: content(1, 0)}, version="v")
        path = next(tmp_path.glob("mine-*"))
        os.utime(path, (time.time() + 60, time.time() + 60))
    assert cache.get("mine", 0, slot_bytes=SLOT) == content(0, 0) and size_of(tmp_path) <= 1 << 20
    assert cache.get("other0", 0, slot_bytes=SLOT) is None


def test_slots_that_a_disk_altered_or_of_another_version_are_none(tmp_path: Path) -> None:
    cache = SlotFiles(tmp_path, max_bytes=1 << 20, most_open=2)
    cache.put("a", {number: content(0, number) for number in range(3)}, version="one")
    assert cache.version("a", 2, slot_bytes=SLOT) == "one"
    path = next(tmp_path.glob("a-*"))
    stored = bytearray(path.read_bytes())
    stored[64 + SLOT + 8 + 5] ^= 1
    path.write_bytes(stored)
    assert [cache.get("a", number, slot_bytes=SLOT) is not None for number in range(4)] == [True, False, True, False]
    cache.put("a", {1: content(0, 1)}, version="two")
    assert [cache.get("a", number, slot_bytes=SLOT) is not None for number in range(4)] == [False, True, False, False]


def test_a_full_disk_is_said_once_and_reading_goes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size="256k"):
        cache = SlotFiles(tmp_path / "disk", max_bytes=1 << 20, most_open=2)
        with pytest.warns(
            UserWarning, match="no space left on the cache's disk, so shards are read without keeping more"
        ) as said:
            for number in range(100):
                cache.put(f"key{number}", {number: content(0, number) for number in range(20)}, version="v")
        assert len(said) == 1 and not cache.keeps and cache.get("key0", 3, slot_bytes=SLOT) == content(0, 3)


def test_a_cache_that_cannot_be_written_to_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FastmixError, match=r"file/cache: the cache cannot be written to \(.*\); name another with storage.cache"):
        SlotFiles(tmp_path / "file" / "cache", max_bytes=1 << 20, most_open=2)
