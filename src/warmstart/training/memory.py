"""Memory that a training gives back and takes again at every update."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h; see mallopt(3)
LARGE = 1 << 30


def keep_freed_memory() -> bool:
    """Let the C library keep what this process frees, for its next allocations; False where it cannot be told.

    glibc returns large blocks to the system at once, and the system clears every page that it hands out again: without
    this, each update pays for thousands of pages. The process keeps its peak of memory in return.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE)) and bool(mallopt(M_TRIM_THRESHOLD, LARGE))
