"""Numbers for TensorBoard, in a file of its own for each time that a run goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

from warmstart.errors import MissingExtra
from warmstart.storage import atomic


class Board:
    """Writes scalars below ``folder`` at once, so that a disk that is full is an error where it happens.

    What earlier files there have from step ``first`` on is hidden.

    Raises:
        MissingExtra: TensorBoard is not installed.
        StorageError: the file cannot be written.
    """

    def __init__(self, folder: Path, first: int) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "train") from error
        self._event, self._summary = Event, Summary
        self.path = folder / f"events.out.tfevents.{time.time_ns()}"  # TensorBoard reads files in the order of names
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("xb")
        except OSError as error:
            raise atomic.storage_error(error, self.path) from error
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=first, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, fields: Mapping[str, float]) -> None:
        """Show ``fields`` at ``step``."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in fields.items()]
        self._write(step=step, summary=self._summary(value=values))

    def _write(self, **parts: object) -> None:
        try:
            self._records.write(self._event(wall_time=time.time(), **parts).SerializeToString())
            self._file.flush()
        except OSError as error:
            raise atomic.storage_error(error, self.path) from error

    def close(self) -> None:
        """End the file."""
        with contextlib.suppress(OSError):  # what could not be written has been said
            self._file.close()
