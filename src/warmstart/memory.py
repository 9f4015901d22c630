"""Memory that a process gives back and takes again at every update of a training or step of a search."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h; see mallopt(3)
LARGE = 1 << 30
ROOM, BLOCK = 4 << 30, 512 << 20  # of addresses, which are no memory until something is written there


def keep_freed_memory() -> bool:
    """Let the C library keep what this process frees, for its next allocations, and take the first 4 GiB of them from
    large pages where the system has such; False where it cannot be told.

    glibc returns large blocks to the system at once, and the system clears every page that it hands out again: without
    this, each update or step pays for many of them. The process keeps its peak of memory in return; whose process it
    is decides: a command, or a training, and no function that a program calls in passing. A processor finds its way in
    few large pages faster than in many small ones (docs/decisions/0041).
    """
    if sys.platform != "linux":
        return False
    try:
        library = ctypes.CDLL(None)
        kept = library.mallopt(M_MMAP_THRESHOLD, LARGE) and library.mallopt(M_TRIM_THRESHOLD, -1)  # -1: never
    except (OSError, AttributeError):  # another C library
        return False
    if kept and _addresses_are_free():
        _prefer_large_pages(library)
    return bool(kept)


def _addresses_are_free() -> bool:
    """Whether neither the system nor a limit of this process counts addresses where nothing is written."""
    import resource  # which Windows has not

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    try:
        strict = Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    except OSError:
        strict = True
    return not strict and all(limit == resource.RLIM_INFINITY for limit in limits)


def _prefer_large_pages(library: Any) -> None:
    """Ask for them in a stretch of the heap that is taken, and given back to the C library, which keeps it."""
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    blocks: list[int] = []
    while len(blocks) < ROOM // BLOCK and (block := library.malloc(BLOCK)):
        blocks.append(block)
        library.madvise(block - block % mmap.PAGESIZE, BLOCK, mmap.MADV_HUGEPAGE)  # advice: it may go unheeded
    for block in blocks:
        library.free(block)
