"""Locks, progress and rank."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from warmstart.errors import StorageError
from warmstart.storage.locks import directory_lock, holder
from warmstart.storage.processes import rank, world_size
from warmstart.storage.progress import Progress

LOCK = (
    "import pathlib, sys\nfrom warmstart.storage.locks import directory_lock\n"
    "with directory_lock(pathlib.Path(sys.argv[1])):\n    print('held')\n"
)


def test_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOCK, str(tmp_path)]
    with directory_lock(tmp_path):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        with pytest.raises(StorageError) as caught, directory_lock(tmp_path):
            pytest.fail("two holders")
    assert refused.returncode != 0
    assert f"process {os.getpid()} on " in refused.stderr
    assert f"process {os.getpid()} on " in str(caught.value.found)
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "held\n"


def test_a_file_where_the_directory_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, where in ((tmp_path / "file", "file"), (tmp_path / "file" / "run", "file/run")):
        with pytest.raises(StorageError, match=r"a file has|is a file") as caught, directory_lock(path):
            pytest.fail("a file was taken for a directory")
        assert caught.value.where == str(tmp_path / where)


def test_the_holder_is_known_without_disturbing_anybody(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with directory_lock(tmp_path):
        assert holder(tmp_path) == f"process {os.getpid()} on {socket.gethostname()}"
    assert holder(tmp_path) is None
    handle = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)  # somebody is looking
    threading.Timer(0.03, os.close, [handle]).start()
    with directory_lock(tmp_path):
        assert holder(tmp_path) is not None


def test_a_lock_makes_its_directory_or_says_why_not(tmp_path: Path) -> None:
    with directory_lock(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"), directory_lock(tmp_path / "file" / "new"):
        pass


def test_plain_lines_are_rare_and_show_fields(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Progress("training", total=10, unit="steps") as progress:
        for _ in range(10):
            clock[0] += 2
            progress.update(loss=2.3051, speed=12)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training: 3/10 steps (30%) 0:14 left loss=2.305 speed=12",
        "training: 6/10 steps (60%) 0:08 left loss=2.305 speed=12",
        "training: 9/10 steps (90%) 0:02 left loss=2.305 speed=12",
        "training: 10/10 steps (100%) loss=2.305 speed=12",
    ]


def test_bar_on_a_terminal() -> None:
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    program = (
        "from warmstart.storage.progress import Progress\n"
        "with Progress('training', total=4) as p:\n"
        "    for _ in range(4):\n        p.update(loss=2.31)\n"
    )
    env = dict(os.environ, TERM="xterm", COLUMNS="100")
    subprocess.run([sys.executable, "-c", program], stderr=follower, check=True, env=env)
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += (part := os.read(leader, 65536))
        except OSError:
            break
        if not part:
            break
    os.close(leader)
    assert b"training" in shown
    assert b"loss=2.31" in shown
    assert b"100%" in shown


def test_rank_and_world_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (rank(), world_size()) == (0, 1)
    monkeypatch.setenv("RANK", "2")
    assert (rank(), world_size()) == (0, 1)  # numbered by somebody else, for something else
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (rank(), world_size()) == (2, 4)
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(StorageError, match="RANK"):
        rank()
