"""Readers in a child process: whatever becomes of the child, its parent says so and goes on."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from warmstart.errors import CorruptCheckpoint, MissingExtra
from warmstart.formats.isolated import Isolated
from warmstart.formats.isolated_server import PIECE

HERE = Path(__file__).resolve().parent


@pytest.fixture
def child(tmp_path: Path) -> Isolated:
    assert str(HERE) in sys.path
    return Isolated("isolated_child", tmp_path / "file", library="json", extra="none", seconds=3, memory=2**30)


def test_calls_and_answers(child: Isolated, tmp_path: Path) -> None:
    assert child.call("echo", text="слово", number=[1, None]) == {
        "path": str(tmp_path / "file"), "text": "слово", "number": [1, None],
    }  # fmt: skip
    assert child.call("chatter") == "answer"


def test_arrays_in_pieces(child: Isolated) -> None:
    sizes = [PIECE, 3, 5]
    array = child.array("pieces", (PIECE // 8 + 1,), "int64", sizes=sizes)
    assert array.tobytes() == b"\0" * PIECE + b"\1" * 3 + b"\2" * 5
    assert not array.flags.writeable
    assert child.array("pieces", (), "float32", sizes=[4]).shape == ()
    assert child.array("pieces", (0, 3), "bfloat16", sizes=[]).shape == (0, 3)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("crash", r"a crash \(signal 11\)"),
        ("leave", r"its end \(status 3\)"),
        ("hang", "no answer within 3 s"),
        ("devour", "more memory than it may"),
        ("refuse", "worse"),
        ("stumble", "ValueError: at byte 7"),
        ("no_such_function", "no_such_function|its end"),
    ],
)
def test_every_end_is_one_error(child: Isolated, function: str, words: str) -> None:
    with pytest.raises(CorruptCheckpoint, match=words) as caught:
        child.call(function)
    assert str(child._path) in str(caught.value.where)
    assert child.call("echo") == {"path": str(child._path)}, "another child takes its place"


def test_time_of_the_processor_is_limited(tmp_path: Path) -> None:
    child = Isolated("isolated_child", tmp_path, library="json", extra="none", seconds=1)
    began = time.monotonic()
    with pytest.raises(CorruptCheckpoint):
        child.call("spin")
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("shape", "sizes"), [((4,), [4]), ((4,), [16, 1]), ((4,), []), ((2**44,), [4]), ((1,), [2**24, 2**24])]
)
def test_arrays_of_another_length(child: Isolated, shape: tuple[int, ...], sizes: list[int]) -> None:
    with pytest.raises(CorruptCheckpoint):
        child.array("pieces", shape, "float32", sizes=sizes)
    assert child.call("echo")


def test_a_reader_that_fails_in_the_middle(child: Isolated) -> None:
    with pytest.raises(CorruptCheckpoint, match="OSError: in the middle"):
        child.array("broken", (4,), "float32")


def test_only_what_is_needed_is_passed_on(child: Isolated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("HDF5_PLUGIN_PATH", "/tmp")
    variables = set(child.call("environment")["variables"])
    assert not {"AWS_SECRET_ACCESS_KEY", "HDF5_PLUGIN_PATH"} & variables


def test_modules_in_the_working_directory_are_not_imported(child: Isolated, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "json.py").write_text("import os; os._exit(7)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert child.call("echo")


def test_several_threads_share_a_child(child: Isolated) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda k: (k, child.array("pieces", (k,), "uint8", sizes=[k])), range(1, 50)))
    assert all(len(answer) == k for k, answer in answers)


def test_a_child_does_not_outlive_its_checkpoint(tmp_path: Path) -> None:
    child = Isolated("isolated_child", tmp_path, library="json", extra="none")
    pid = child.call("environment")["pid"]
    os.kill(pid, 0)
    del child
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_after_a_fork_the_child_process_gets_its_own(child: Isolated) -> None:
    mine = child.call("environment")["pid"]
    reader, writer = os.pipe()
    if (fork := os.fork()) == 0:
        os.write(writer, str(child.call("environment")["pid"]).encode())
        os._exit(0)
    os.waitpid(fork, 0)
    assert int(os.read(reader, 100)) != mine
    assert child.call("environment")["pid"] == mine


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"warmstart\[hdf5\]"):
        Isolated("isolated_child", tmp_path, library="no_such_library", extra="hdf5")
