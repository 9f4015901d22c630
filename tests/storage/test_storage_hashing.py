"""A file is hashed once, beside other work."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys

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
    assert sorted(os.path.basename(path) for path in hashed) == ["absent", "empty", "small", "weights"]
    assert os.path.basename(hashed[0]) == "weights"


def test_what_nobody_asked_for_is_given_up(tmp_path):
    (tmp_path / "weights").write_bytes(b"x")
    with pytest.raises(Stopped):
        sha256(tmp_path / "weights", lambda: True)
    assert sha256(tmp_path / "weights") == hashlib.sha256(b"x").hexdigest()


HASH = """
import os, sys
from pathlib import Path
from warmstart.storage import crew, hashing
crew.claim()
if sys.argv[2] == "killed":
    hashing._mapped_sha256 = lambda path, stop: os.abort()
here = Path(sys.argv[1])
hashing.Digests.begin_ahead(str(here))
with hashing.Digests.begun_ahead() as digests:
    assert list(digests._begun) == [os.path.realpath(here / "large")]
    digests.guess(here)
    assert isinstance(digests._hasher, hashing._Process)
    print(*(digests(here / name) for name in ("large", "small", "empty", "large")))
    try:
        digests(here / "absent")
    except OSError as error:
        print(error.strerror)
    print(digests(here / "small"))
assert hashing.Digests.begun_ahead() is not digests
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("alone")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux")
@pytest.mark.parametrize("how", ["", "killed"])
def test_a_process_hashes_and_what_it_does_not_answer_is_hashed_here(how, tmp_path):
    contents = {"large": random.Random(0).randbytes(2**25 + 5), "small": b"x", "empty": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", HASH, str(tmp_path), how]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert not result.returncode, result.stderr
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    first, error, again, alone = result.stdout.splitlines()
    assert first.split() == [expected[name] for name in ("large", "small", "empty", "large")]
    assert (error, again, alone) == ("No such file or directory", expected["small"], "alone")
