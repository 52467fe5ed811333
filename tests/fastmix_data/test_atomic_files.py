from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastmix_data.atomic_files import atomic_file, exclusive_lock, hash_of, read_json, write_json
from fastmix_data.errors import CorruptArtefactError, FastmixError


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    with atomic_file(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole" and list(path.parent.iterdir()) == [path]


def test_a_lock_is_of_one_process_and_goes_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    program = (
        "import sys; from pathlib import Path; from fastmix_data.atomic_files import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1]), command='search'): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(FastmixError) as error, exclusive_lock(lock, command="search"):
        pass
    assert error.value.where == str(lock.parent) and error.value.what == "another fastmix search works in this workdir"
    assert error.value.remedy == "wait for it, or name another"
    holder.kill()
    holder.communicate()
    with exclusive_lock(lock, command="search"):
        pass


def test_json_that_is_none_is_refused_and_hashes_do_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1, "b": [1.5, None]})
    assert read_json(path) == {"a": 1, "b": [1.5, None]}
    path.write_text("{")
    with pytest.raises(CorruptArtefactError, match=r"not valid JSON .*; delete it and run its command again"):
        read_json(path)
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1}) != hash_of({"a": 2, "b": 1})
