"""Freed memory is used again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
from warmstart.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    blocks = [bytearray(48 << 20) for _ in range(2)]
    del blocks
work()
before = faults()
for _ in range(5):
    work()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_pages_are_not_asked_for_again() -> None:
    def faults(how: str) -> int:
        return int(
            subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, check=True, text=True).stdout
        )

    assert faults("plain") > 10_000
    assert faults("keep") < 1_000
