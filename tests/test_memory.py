"""Freed memory is used again, in trainings and in the commands that decode, and lies on large pages where there are."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = """
import resource
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    blocks = [bytearray(48 << 20) for _ in range(2)]
    del blocks
def count(*_, **__):
    work()
    before = faults()
    for _ in range(5):
        work()
    print(faults() - before)
    return []
"""
KEEP = "from warmstart.memory import keep_freed_memory\nassert keep_freed_memory()\n"
TRANSLATE = """
import io, sys
from warmstart import api
from warmstart.cli.verbs import app
api.translate = count
sys.stdin = io.TextIOWrapper(io.BytesIO())
app(["translate", "model"], standalone_mode=False)
"""
ADVISED = """
import ctypes
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
block = library.malloc(64 << 20)
here, used = False, 0
for line in open("/proc/self/smaps"):
    first, *rest = line.split()
    if "-" in first:
        begin, end = (int(x, 16) for x in first.split("-"))
        here = begin <= block and block + (64 << 20) <= end
    elif first == "Rss:":
        used += int(rest[0])
    elif first == "VmFlags:" and here:
        print("hg" in rest, used < 200_000)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def printed(program: str) -> int:
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout)


def test_pages_are_not_asked_for_again() -> None:
    assert printed(COUNT + "count()") > 10_000
    assert printed(COUNT + KEEP + "count()") < 1_000


def test_a_command_that_decodes_keeps_its_memory() -> None:
    assert printed(COUNT + TRANSLATE) < 1_000


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the system has no large pages")
def test_large_pages_are_asked_for_and_none_is_used_before_something_is_written_there() -> None:
    done = subprocess.run([sys.executable, "-c", KEEP + ADVISED], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["True", "True"]


def test_a_process_with_few_addresses_keeps_them() -> None:
    limited = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({2 << 30}, {2 << 30}))\n"
    size = "print(int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize())"
    assert printed(limited + KEEP + size) < 1 << 30
