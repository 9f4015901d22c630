"""What a run writes as it goes on: metrics, samples and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from warmstart.storage.records import Record, Records
from warmstart.training import state as checkpoints
from warmstart.training.learner import Learner
from warmstart.training.metrics import Metrics
from warmstart.training.state import State


class Output:
    """Writes into the directory ``run``, after cutting its records back to those that belong to ``start``.

    ``written`` is given each complete checkpoint, in the thread that writes them.

    Raises:
        MissingExtra, FormatError, StorageError: see ``Metrics`` and ``Records``.
    """

    def __init__(self, run: Path, start: State, written: Callable[[Path], None]) -> None:
        self.run = run
        self._stack = ExitStack()
        self._metrics = self._stack.enter_context(Metrics(run, start.step, start.records.get("metrics", 0)))
        self._samples = self._stack.enter_context(Records(run / "samples.jsonl", start.records.get("samples", 0)))
        self._writer = self._stack.enter_context(checkpoints.Writer(run, self._sync, written))

    def _sync(self) -> None:
        self._metrics.sync()
        self._samples.sync()

    def measured(self, step: int, kind: str, fields: Mapping[str, float], times: Mapping[str, float]) -> None:
        """One record of the metrics."""
        self._metrics.measured(step, kind, fields, times)

    def sampled(self, step: int, rows: Sequence[Record]) -> None:
        """Sample outputs of an evaluation."""
        for row in rows:
            self._samples.write({"step": step, **row})

    def save(self, learner: Learner, state: State, keep_last: int, *, final: bool) -> None:
        """Write a checkpoint in the background, unless this step has one already.

        A ``final`` one takes the place of the one that was written when the run was stopped before its last
        evaluation, which may have put back the best weights or reset the optimizer.
        """
        state = replace(state, records={"metrics": self._metrics.count, "samples": self._samples.count})
        self._writer.wait()
        if final or not checkpoints.checkpoint_path(self.run, state.step).exists():
            self._writer.submit(learner.snapshot(state), keep_last)

    def wait(self) -> None:
        """Until all is on disk. Raises ``StorageError``."""
        self._writer.wait()

    def check(self) -> None:
        """Raise what went wrong meanwhile, without waiting."""
        self._writer.check()

    def rewind(self, state: State) -> None:
        """Back to the records that belong to ``state``."""
        self._metrics.rewind(state.step, state.records.get("metrics", 0))
        self._samples.cut(state.records.get("samples", 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


class NoOutput(Output):
    """Of the ranks that write nothing."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def measured(self, step: int, kind: str, fields: Mapping[str, float], times: Mapping[str, float]) -> None:
        pass

    def sampled(self, step: int, rows: Sequence[Record]) -> None:
        pass

    def save(self, learner: Learner, state: State, keep_last: int, *, final: bool) -> None:
        pass

    def wait(self) -> None:
        pass

    def check(self) -> None:
        pass

    def rewind(self, state: State) -> None:
        pass
