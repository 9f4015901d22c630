"""Directories and files are complete or invisible."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from warmstart.errors import StorageError
from warmstart.storage.atomic import atomic_file, new_directory, write_bytes, write_text


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "старое\r\n")
    assert (tmp_path / "a").read_bytes() == "старое\r\n".encode()
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")

    def half() -> None:
        with atomic_file(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    def fill() -> None:
        with new_directory(tmp_path / "out") as temporary:
            (temporary / "part").write_text("x")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError) as caught:
        fill()
    assert "space" in str(caught.value.todo)
    assert names(tmp_path) == []


def test_another_read_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_directory(tmp_path / "out"):
        (tmp_path / "input").read_text()


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_text(tmp_path / "file" / "x", "")


def test_directory_is_invisible_until_complete(tmp_path: Path) -> None:
    with new_directory(tmp_path / "out") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "file").write_text("x")
        assert all(name.startswith(".out.tmp-") for name in names(tmp_path))
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "deep" / "file").read_text() == "x"


def test_existing_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="exists"), new_directory(tmp_path / "out"):
        pytest.fail("the body ran")


def test_created_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def too_late() -> None:
        with new_directory(tmp_path / "out"):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").write_text("x")

    with pytest.raises(StorageError, match="exists"):
        too_late()
    assert (tmp_path / "out" / "theirs").exists()
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("fails", [False, True])
def test_force_replaces_only_when_complete(tmp_path: Path, fails: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    try:
        with new_directory(tmp_path / "out", force=True) as temporary:
            (temporary / "new").write_text("y")
            assert (tmp_path / "out" / "old").exists()
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert names(tmp_path / "out") == (["old"] if fails else ["new"])
    assert names(tmp_path) == ["out"]


def test_killed_process_leaves_the_old_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    program = (
        "import os, pathlib, signal, sys\n"
        "from warmstart.storage.atomic import new_directory\n"
        "with new_directory(pathlib.Path(sys.argv[1]), force=True) as d:\n"
        "    (d / 'new').write_text('y')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path / "out") == ["old"]
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ["out"]


HOLDS = """
import os, pathlib, sys
from warmstart.storage.atomic import atomic_file, new_directory
writer = {"file": atomic_file, "directory": new_directory}[sys.argv[1]]
with writer(pathlib.Path(sys.argv[2])) as temporary:
    print(temporary.name, flush=True)
    sys.stdin.readline()
    os._exit(9)
"""


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_killed_processes_left_is_removed_and_what_living_ones_write_is_not(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target, other = tmp_path / "out", tmp_path / ".out2.tmp-1-00000000"
    other.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([sys.executable, "-c", HOLDS, kind, str(target)], **pipes) for _ in range(2)]  # type: ignore[call-overload]
    left = [writer.stdout.readline().strip() for writer in writers]
    writers[0].communicate("\n")
    with atomic_file(target) if kind == "file" else new_directory(target) as temporary:
        assert names(tmp_path) == sorted([left[1], temporary.name, other.name])
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / left[0]} was left by a process that was stopped before it had finished: removed"
    ]
    writers[1].communicate("\n")
    assert names(tmp_path) == sorted([left[1], "out", other.name])


def test_a_directory_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a moment at which neither is there, in which a process could be killed."""
    out = tmp_path / "out"
    with new_directory(out) as temporary:
        (temporary / "part").write_text("old")

    def renamed(path: Path, target: Path) -> None:
        raise AssertionError(f"{path} was renamed")

    monkeypatch.setattr(Path, "rename", renamed)
    with new_directory(out, force=True) as temporary:
        (temporary / "part").write_text("new")
    assert (out / "part").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_where_names_cannot_change_places_the_old_one_is_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmstart.storage.atomic._RENAME_EXCHANGE", 2**20)  # a flag that no system knows
    for text in ("old", "new"):
        with new_directory(tmp_path / "out", force=True) as temporary:
            (temporary / "part").write_text(text)
    assert (tmp_path / "out/part").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_an_error_names_the_target_and_not_the_hidden_directory(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught, new_directory(tmp_path / "out") as temporary:
        raise StorageError("cannot be written", where=temporary / "model.bin", todo="choose another place")
    assert caught.value.where == str(tmp_path / "out/model.bin")
    assert caught.value.todo == "choose another place"
