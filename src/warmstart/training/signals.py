"""SIGTERM, Ctrl-C and a terminal that is closed ask a training to save and stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from warmstart.errors import Interrupted

ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Catches SIGTERM, SIGINT and SIGHUP; ``caught`` is the first that came. A second one ends the process as usual.
    Under ``nohup`` SIGHUP stays without effect.

    Only the main thread may catch signals: in another one nothing is caught.
    """

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._raising = False
        self._before: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.caught = signal.Signals(number)
        self._restore()
        if self._raising:
            raise Interrupted(self.caught)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """A stretch of work that changes nothing: a signal raises ``Interrupted`` in its middle."""
        self._raising = True
        try:
            if self.caught is not None:
                raise Interrupted(self.caught)
            yield
        finally:
            self._raising = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            asked = [number for number in ASKED if not (ignored and number == signal.SIGHUP)]
            self._before = {number: signal.signal(number, self._handle) for number in asked}
        return self

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
