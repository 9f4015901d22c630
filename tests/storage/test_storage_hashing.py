"""The digest of a file that is being written is the digest of what lies there."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
from concurrent.futures import CancelledError

import pytest

from warmstart.storage import hashing
from warmstart.storage.hashing import Digests, Hashed, sha256


def test_pieces_of_every_size(tmp_path):
    generator, held = random.Random(0), []
    sizes = [0, 1, 7, 2**14 - 1, 2**14, 2**14 + 1, 2**22, *(generator.randrange(2**15) for _ in range(300))]
    with (tmp_path / "file").open("wb") as out, Hashed(out, held.append) as file:
        for size in sizes:
            file.write(generator.randbytes(size))
        digest = file.hexdigest()
    content = (tmp_path / "file").read_bytes()
    assert len(content) == sum(sizes)
    assert digest == hashlib.sha256(content).hexdigest()
    assert sum(map(len, held)) == len(content)


def test_no_thread_is_left_behind_by_an_error(tmp_path):
    before = threading.active_count()

    def fail() -> None:
        with (tmp_path / "file").open("wb") as out, Hashed(out) as file:
            file.write(b"x" * 2**20)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert threading.active_count() == before


def test_the_disk_is_asked_while_a_file_is_written_and_its_errors_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "_AHEAD", 2**20)
    asked = []
    monkeypatch.setattr(os, "fdatasync", asked.append)
    with (tmp_path / "file").open("wb") as out, Hashed(out) as file:
        for _ in range(8):
            file.write(bytes(2**19))
    assert asked

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "the disk fails")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="the disk fails"), (tmp_path / "file").open("wb") as out, Hashed(out) as file:
        for _ in range(2):
            file.write(bytes(2**20))


def test_a_file_is_hashed_once_from_when_it_is_spoken_of(tmp_path, monkeypatch):
    contents = {"weights": random.Random(0).randbytes(2**23 + 5), "small": b"x", "empty": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    hashed = []
    monkeypatch.setattr(hashing, "sha256", lambda path, stop: hashed.append(path) or sha256(path, stop))
    with Digests() as digests:
        digests.guess(tmp_path)
        for name, content in contents.items():
            assert digests(tmp_path / name) == hashlib.sha256(content).hexdigest()
        with pytest.raises(OSError, match="No such file"):
            digests(tmp_path / "absent")
        digests.guess(tmp_path / "absent")
    assert sorted(path.name for path in hashed) == ["absent", "empty", "small", "weights"]
    assert hashed[0].name == "weights"


def test_what_nobody_asked_for_is_given_up(tmp_path):
    (tmp_path / "weights").write_bytes(b"x")
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        sha256(tmp_path / "weights", stop)
    assert sha256(tmp_path / "weights") == hashlib.sha256(b"x").hexdigest()
