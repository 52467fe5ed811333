"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fastmix", deadline=None)  # times of tests say how busy the machine is
settings.load_profile("fastmix")

# They are no modules with doctests, and all have one name, of which pytest can collect but one.
collect_ignore_glob = ["*conftest.py"]
