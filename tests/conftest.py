"""What all tests share: drawn cases are the same every time and none is timed; a command's choice of threads does not outlive its test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("untimed", deadline=None, derandomize=True)
settings.load_profile("untimed")
THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Sums run in another order on other numbers of threads, and runs in a child process would not be those of this one."""
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)
