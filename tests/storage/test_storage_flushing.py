"""The disk is asked for a large file while it is written, and what it answers is not lost."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from warmstart.storage import flushing
from warmstart.storage.flushing import Flushing


def test_the_disk_is_asked_while_a_file_is_written_and_its_errors_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(flushing, "_EVERY", 2**20)
    asked = []
    monkeypatch.setattr(os, "fdatasync", asked.append)
    with (tmp_path / "file").open("wb") as out, Flushing(out) as file:
        for _ in range(8):
            assert file.write(bytes(2**19)) == 2**19
    assert asked
    assert (tmp_path / "file").read_bytes() == bytes(2**22)

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "the disk fails")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="the disk fails"), (tmp_path / "file").open("wb") as out, Flushing(out) as file:
        for _ in range(2):
            file.write(bytes(2**20))


def test_no_thread_is_left_behind_by_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(flushing, "_EVERY", 2**10)
    before = threading.active_count()

    def fail() -> None:
        with (tmp_path / "file").open("wb") as out, Flushing(out) as file:
            file.write(b"x" * 2**20)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert threading.active_count() == before
