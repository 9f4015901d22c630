"""Work that is shared among processes is done once each, and what one of them fails at is said here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from warmstart.storage import crew

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux")

# A process of its own: pytest's has threads.
SETUP = """
import os, signal, sys, threading, time
from pathlib import Path
from warmstart.storage import crew
crew.claim()
here = Path(sys.argv[1])
def mark(number):
    time.sleep(0.001)
    with (here / str(number)).open("a") as file:
        file.write(f"{os.getpid()}\\n")
done = []
def share(count, work):
    processes = 4 if crew.may_fork() else 0
    crew.share(count, work, done.append, meanwhile=lambda: (here / "meanwhile").touch(), processes=processes)
"""


def run(code, folder):
    return subprocess.run(
        [sys.executable, "-c", SETUP + code, str(folder)], capture_output=True, text=True, timeout=60, check=False
    )


def marks(folder):
    return {int(file.name): file.read_text().split() for file in folder.iterdir() if file.name.isdigit()}


def test_each_number_is_done_once_by_several_processes(tmp_path):
    result = run("share(200, mark)\nprint(os.getpid(), len(done), done == sorted(done))", tmp_path)
    assert not result.returncode, result.stderr
    parent, own, ordered = result.stdout.split()
    found = marks(tmp_path)
    assert sorted(found) == list(range(200))
    assert all(len(by) == 1 for by in found.values())
    workers = {by[0] for by in found.values()}
    assert parent in workers
    assert len(workers) == 4
    assert 0 < int(own) < 200
    assert ordered == "True"
    assert (tmp_path / "meanwhile").exists()


@pytest.mark.parametrize("where", ["children", "parent", "both"])
def test_the_first_error_is_raised_here_and_nobody_is_left(where, tmp_path):
    code = f"""
parent = os.getpid()
def work(number):
    here = "parent" if os.getpid() == parent else "children"
    mark(number)
    # what a child fails at, the parent fails at, too
    if number in (50, 60) and ({where!r} in (here, "both") or (Path(sys.argv[1]) / "failed").exists()):
        (Path(sys.argv[1]) / "failed").touch()
        raise ValueError(f"number {{number}}")
try:
    share(100_000, work)
except ValueError as error:
    print(error)
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("alone")
"""
    result = run(code, tmp_path)
    assert not result.returncode, result.stderr
    said = result.stdout.splitlines()
    assert said[-1] == "alone"
    assert len(said) == 2 or where != "both"
    if where == "both":
        assert said[0] == "number 50"
        assert len(marks(tmp_path)) < 100_000


def test_what_a_killed_process_left_is_done_here(tmp_path):
    code = """
parent = os.getpid()
def work(number):
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    mark(number)
share(40, work)
"""
    result = run(code, tmp_path)
    assert not result.returncode, result.stderr
    assert sorted(marks(tmp_path)) == list(range(40))


def test_processes_end_when_their_parent_was_killed(tmp_path):
    command = [sys.executable, "-c", SETUP + "share(1_000_000, mark)", str(tmp_path)]
    with subprocess.Popen(command) as process:
        while len(marks(tmp_path)) < 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    workers = {int(pid) for by in marks(tmp_path).values() for pid in by}
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a process goes on"
        time.sleep(0.05)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_process_with_threads_is_not_forked(tmp_path):
    code = """
thread = threading.Thread(target=time.sleep, args=(1,))
thread.start()
share(50, mark)
thread.join()
print(os.getpid())
"""
    result = run(code, tmp_path)
    assert not result.returncode, result.stderr
    assert {by[0] for by in marks(tmp_path).values()} == {result.stdout.strip()}
    assert not crew.may_fork()


def test_threads_raise_the_first_error():
    def work(number):
        if number >= 5:
            raise ValueError(number)

    with pytest.raises(ValueError, match="5"):
        crew.share(50, work, lambda _: None, meanwhile=lambda: None)
    assert os.getpid()
