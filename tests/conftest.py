"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when it is imported: tests and their ranks share the cores

settings.register_profile("fastmix", deadline=None)  # times of tests say how busy the machine is
settings.load_profile("fastmix")

# They are no modules with doctests, and all have one name, of which pytest can collect but one.
collect_ignore_glob = ["*conftest.py"]
