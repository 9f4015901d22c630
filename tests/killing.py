"""Trainings in processes that a test kills, and what of a run must not depend on when that was."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class Server:
    """Trains ``c.yaml`` of the folder ``place`` in forked children (``kill_server.py``)."""

    def __init__(self, place: Path) -> None:
        self.place = place
        script = Path(__file__).with_name("kill_server.py")
        self.log = (place / "log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, run: str, *overrides: str, operation: int = 0) -> int:
        return self.ask("c.yaml", [f"run={run}", *overrides], operation)

    def ask(self, config: str, arguments: list[str], operation: int = 0) -> int:
        """Start a child; its process number."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([config, arguments, operation]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def kill(self, pid: int, number: int) -> int:
        """Send a signal, unless the child has ended by itself, and wait for its end."""
        assert pid > 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return self.wait()

    def wait(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def train(self, run: str, *overrides: str, operation: int = 0) -> int:
        self.start(run, *overrides, operation=operation)
        return self.wait()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def contents(run: Path) -> dict[str, Any]:
    """Everything of a run that must not depend on when it was killed."""
    found: dict[str, Any] = {}
    for file in sorted(run.rglob("*")):
        name = str(file.relative_to(run))
        if file.is_file() and name.startswith(("checkpoints/", "model/")):
            found[name] = file.read_bytes()
    for name in ("metrics.jsonl", "samples.jsonl"):
        lines = (run / name).read_text().splitlines()
        found[name] = [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]
    return found
