"""What a training measured: one JSON record a line in ``metrics.jsonl``, and the same for TensorBoard.

A record is ``{"step", "kind", fields…, "time": {…}}``: fields are equal bit for bit when a run is repeated or
resumed; what depends on the clock is under ``time``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from warmstart.errors import MissingExtra, TrainingError
from warmstart.storage import atomic

Record = dict[str, Any]


def read_metrics(run: Path) -> list[Record]:
    """The records of a run, in order; none where the run has none. A last line without its end is left out.

    Raises:
        TrainingError: a line is not a record.
    """
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    records: list[Record] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise TrainingError("this line is not a record of metrics", where=f"{path}:{number}") from error
        records.append(record)
    return records


def cut(run: Path, step: int) -> None:
    """Drop the records past ``step``: they will be measured again."""
    path = run / "metrics.jsonl"
    if path.exists():
        kept = [record for record in read_metrics(run) if record["step"] <= step]
        atomic.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


class Metrics:
    """Appends records of a run. On entering, records past ``step`` are cut.

    Raises:
        MissingExtra: TensorBoard is not installed.
    """

    def __init__(self, run: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "train") from error
        cut(run, step)
        self._file = (run / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(log_dir=str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, kind: str, fields: Mapping[str, float], time: Mapping[str, float]) -> None:
        """Append one record and flush it. Numbers that are not finite become null."""
        finite = {name: value if math.isfinite(value) else None for name, value in fields.items()}
        record = {"step": step, "kind": kind, **finite, "time": {name: round(value, 3) for name, value in time.items()}}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in fields.items():
            self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Have all records on disk, as a checkpoint that follows them promises."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()
