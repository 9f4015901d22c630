"""What a training measured: records in ``metrics.jsonl``, and the same for TensorBoard.

A record is ``{"step", "kind", fields…, "time": {…}}``: fields are equal bit for bit when a run is repeated or
resumed; what depends on the clock is under ``time``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from warmstart.storage.records import Record, Records, read_records
from warmstart.training.board import Board

FILE = "metrics.jsonl"


def read_metrics(run: Path) -> list[Record]:
    """The records of a run, in order; none where the run has none. Raises ``FormatError`` for a damaged line."""
    return read_records(run / FILE)


class Metrics(Records):
    """Appends records of a run, after cutting them back to the first ``keep``; those past ``step`` are hidden in
    TensorBoard.

    Raises:
        MissingExtra: TensorBoard is not installed.
        FormatError, StorageError: see ``Records``.
    """

    def __init__(self, run: Path, step: int, keep: int) -> None:
        super().__init__(run / FILE, keep)
        self._folder = run / "tensorboard"
        self._board = Board(self._folder, step + 1 if keep else 0)

    def rewind(self, step: int, keep: int) -> None:
        """Back to ``step`` and its first ``keep`` records."""
        self.cut(keep)
        self._board.close()
        self._board = Board(self._folder, step + 1)

    def measured(self, step: int, kind: str, fields: Mapping[str, float], time: Mapping[str, float]) -> None:
        """Append one record. Numbers that are not finite become null."""
        finite = {name: value if math.isfinite(value) else None for name, value in fields.items()}
        self.write({"step": step, "kind": kind, **finite, "time": {name: round(v, 3) for name, v in time.items()}})
        self._board.write(step, fields)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._board.close()
