"""How far a long piece of work is, on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from warmstart.storage.processes import rank

SECONDS_BETWEEN_LINES = 5.0


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """A progress bar on a terminal; elsewhere a plain line at most every five seconds.

    Args:
        description: what is being done.
        total: the number of units of the whole work; None if unknown.
        unit: what is counted, for plain lines (``steps``).

    Only the process of rank 0 shows anything.
    """

    def __init__(self, description: str, total: int | None, unit: str = "") -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.done = 0
        self._fields: dict[str, object] = {}
        self._bar: Any = None
        self._task: Any = None
        self._shown = rank() == 0
        self._started = self._last_line = time.monotonic()
        self._line_done = -1

    def __enter__(self) -> Progress:
        self._started = self._last_line = time.monotonic()
        if self._shown and sys.stderr.isatty():
            self._open_bar()
        return self

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(self.description, total=self.total, text="")
        self._bar.start()

    def extend(self, n: int) -> None:
        """There are ``n`` more units to do than was known."""
        self.total = (self.total or 0) + n
        if self._bar is not None:
            self._bar.update(self._task, total=self.total)

    def update(self, n: int = 1, **fields: object) -> None:
        """Counts ``n`` more units; ``fields`` replace those of the same name and are shown as ``loss=2.31``."""
        self.done += n
        self._fields.update(fields)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, text=self._text())
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._line()

    def _text(self) -> str:
        return " ".join(f"{name}={_value(value)}" for name, value in self._fields.items())

    def _line(self) -> None:
        self._last_line = time.monotonic()
        self._line_done = self.done
        if not self._shown:
            return
        elapsed = self._last_line - self._started
        parts = [f"{self.description}: {self.done}" + (f"/{self.total}" if self.total else "")]
        if self.unit:
            parts.append(self.unit)
        if self.total:
            parts.append(f"({100 * self.done // self.total}%)")
            if 0 < self.done < self.total:
                parts.append(f"{_duration(elapsed / self.done * (self.total - self.done))} left")
        parts.append(self._text())
        print(" ".join(part for part in parts if part), file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.done != self._line_done and self.done:
            self._line()
