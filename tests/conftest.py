"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fastmix", deadline=None)  # times of tests say how busy the machine is
settings.load_profile("fastmix")
