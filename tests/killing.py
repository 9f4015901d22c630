"""Trainings in processes that a test kills, and what of a run must not depend on when that was."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import yaml

TRAINING = {
    "steps": 9,
    "learning_rate": 0.01,
    "schedule": {"type": "inverse_sqrt", "warmup": 3},
    "average": {"decay": 0.9},
    "evaluate_every": 3,
    "checkpoint_every": 2,
    "log_every": 1,
    "samples": 2,
    "precision": "float32",
}


DIRECTORIES = ("checkpoints/", "model/", "adapters/", "distilled/", "nonfinite/")


def write_task(folder: Path, **training: Any) -> None:
    """Words to be reversed, and ``c.yaml``: a tiny model with dropout that learns it."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcde"), size=rng.integers(2, 6))) for _ in range(120)]
    for split, part in (("train", words[:100]), ("validation", words[100:])):
        (folder / f"{split}.tsv").write_text("".join(f"{w}\t{w[::-1]}\n" for w in part))
    config = {
        "run": "run",
        "model": {"d_model": 16, "num_heads": 2, "d_ff": 32, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.2},
        "vocabularies": {"source": {"type": "characters"}, "target": {"type": "characters"}},
        "data": {
            "tasks": {"reverse": {"splits": {s: {"tsv": f"{s}.tsv"} for s in ("train", "validation")}}},
            "max_length": 32,
            "batch_tokens": 128,
        },
        "training": {**TRAINING, **training},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(config))


def spawn(script: str, place: Path, log: TextIO, poison: int = 0) -> subprocess.Popen[str]:
    """One of the scripts beside this file that are told by lines what to do, in ``place``, with one thread."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name(script))],
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "POISON": str(poison)},
    )


class Server:
    """Trains ``c.yaml`` of the folder ``place`` in forked children (``kill_server.py``)."""

    def __init__(self, place: Path, poison: int = 0) -> None:
        self.place = place
        self.log = (place / "log").open("a")
        self.process = spawn("kill_server.py", place, self.log, poison)

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
        if file.is_file() and name.startswith(DIRECTORIES):
            found[name] = file.read_bytes()
    for name in ("metrics.jsonl", "samples.jsonl"):
        lines = (run / name).read_text().splitlines()
        found[name] = [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]
    return found
