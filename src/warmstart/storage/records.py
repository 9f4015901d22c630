"""Files of JSON records, one a line, that a killed process leaves readable and that can be cut back."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from warmstart.errors import FormatError
from warmstart.storage import atomic

logger = logging.getLogger(__name__)
Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """The records of a file, in order; none where there is no file. A last line without its end is left out.

    Raises:
        FormatError: a line is not a record.
    """
    if not path.exists():
        return []
    records: list[Record] = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise FormatError(
                "this line is not a record of a run", where=f"{path}:{number}", todo="remove the line, or the run"
            ) from error
        records.append(record)
    return records


class Records:
    """Appends to a file of records, after cutting it back to its first ``keep`` (all if None) and off a torn last line.

    Attributes:
        count: the number of records in the file.

    Raises:
        FormatError: a line is not a record.
        StorageError: the file cannot be written.
    """

    def __init__(self, path: Path, keep: int | None = None) -> None:
        self.path = path
        self._open(keep)

    def _open(self, keep: int | None) -> None:
        records = read_records(self.path)
        if keep is not None and len(records) < keep:
            logger.warning("%s holds %d records, not %d: some were removed", self.path, len(records), keep)
        if self.path.exists():
            atomic.write_text(self.path, "".join(_line(record) for record in records[:keep]))
        self.count = len(records[:keep])
        try:
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise atomic.storage_error(error, self.path) from error

    def cut(self, keep: int) -> None:
        """Keep the first ``keep`` records only, and go on after them."""
        self._file.close()
        self._open(keep)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and flush it."""
        try:
            self._file.write(_line(record))
            self._file.flush()
        except OSError as error:
            raise atomic.storage_error(error, self.path) from error
        self.count += 1

    def sync(self) -> None:
        """Have all records on disk, as a checkpoint that follows them promises."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise atomic.storage_error(error, self.path) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as failure:  # what could not be flushed has been reported by write
            logger.debug("%s: %s", self.path, failure)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
