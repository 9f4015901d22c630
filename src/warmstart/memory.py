"""Memory that a process gives back and takes again at every update of a training or step of a search."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h; see mallopt(3)
LARGE = 1 << 30


def keep_freed_memory() -> bool:
    """Let the C library keep what this process frees, for its next allocations; False where it cannot be told.

    glibc returns large blocks to the system at once, and the system clears every page that it hands out again: without
    this, each update or step pays for many of them. The process keeps its peak of memory in return; whose process it
    is decides: a command, or a training, and no function that a program calls in passing.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE)) and bool(mallopt(M_TRIM_THRESHOLD, LARGE))
