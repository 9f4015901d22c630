"""The digest of a file that is being written is the digest of what lies there."""

from __future__ import annotations

import hashlib
import random
import threading

import pytest

from warmstart.storage.hashing import Hashed


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
