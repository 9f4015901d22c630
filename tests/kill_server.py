"""Runs trainings in forked children, so that a test may kill many without paying for each start of Python.

Reads a JSON line ``[config, overrides, operation]`` (for ``warmstart stt train``: ``["stt", flags, operation]``) from
standard input, answers with the child's process number, and
with its exit status when it has ended. With ``operation`` k the child kills itself at its k-th operation on the disk:
before a flush or a renaming, or in the middle of writing a log line; ``-1`` has it print how many there are.

With the environment's ``POISON`` N, text batches whose examples' places add up to a multiple of N have a loss of NaN.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import sys
from dataclasses import replace
from typing import Any

from warmstart import api
from warmstart.cli import print_error
from warmstart.errors import WarmstartError
from warmstart.frontends.coqui.commands import run as stt
from warmstart.storage import records


def count_operations(limit: int) -> list[int]:
    done = [0]

    def reached() -> bool:
        done[0] += 1
        return done[0] == limit

    def guarded(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if reached():
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in ("fsync", "rename", "replace"):
        setattr(os, name, guarded(getattr(os, name)))
    line = records._line
    write = records.Records.write

    def half(self: records.Records, record: Any) -> None:
        if reached():
            text = line(record)
            self._file.write(text[: len(text) // 2])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, record)

    records.Records.write = half  # type: ignore[method-assign]
    return done


def poison(every: int) -> None:
    from warmstart.training.objective import CrossEntropy

    call = CrossEntropy.__call__

    def poisoned(self: CrossEntropy, model: Any, batch: Any) -> Any:
        loss = call(self, model, batch)
        return loss if batch.indices.sum() % every else replace(loss, loss=loss.loss * math.nan)

    CrossEntropy.__call__ = poisoned  # type: ignore[method-assign]


def child(config: str, overrides: list[str], operation: int) -> int:
    done = count_operations(operation)
    try:
        if config == "stt":
            stt("train", overrides, lambda line: None, lambda line: None)
        else:
            api.train(config, overrides, progress=False)
    except WarmstartError as error:
        print_error(error)
        return getattr(error, "status", 1)
    if operation == -1:
        with open("operations", "w") as file:
            file.write(str(done[0]))
    return 0


def preload() -> None:
    """Import once what each child needs."""
    for module in (
        "torch._dynamo",
        "tensorboard.summary.writer.record_writer",
        "sacrebleu",
        "jiwer",
        "warmstart.setting",
        "warmstart.training.run",
    ):
        importlib.import_module(module)


def serve() -> None:
    preload()
    if every := int(os.environ.get("POISON", "0")):
        poison(every)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                status = child(*json.loads(line))
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                status = 99
            os._exit(status)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
