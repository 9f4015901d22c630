"""A file is hashed once, beside other work."""

from __future__ import annotations

import hashlib
import random

import pytest

from warmstart.storage import hashing
from warmstart.storage.hashing import Digests, Stopped, sha256


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
    with pytest.raises(Stopped):
        sha256(tmp_path / "weights", lambda: True)
    assert sha256(tmp_path / "weights") == hashlib.sha256(b"x").hexdigest()
