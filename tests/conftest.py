"""What all tests share: drawn cases are the same every time, and none is timed."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("untimed", deadline=None, derandomize=True)
settings.load_profile("untimed")
