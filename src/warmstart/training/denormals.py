"""Numbers next to zero, which processors compute with slowly."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Inside, what is smaller than the smallest normal number is zero, in this thread and those that it starts.

    Outside the process is as it was. Without effect where the processor cannot do it.
    """
    smallest = sys.float_info.min
    if smallest / 2 == 0.0 or not torch.set_flush_denormal(True):
        yield
        return
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
