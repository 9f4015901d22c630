"""A conversion carried out: every target array read, computed and written, at the same time as others.

Where the layout says beforehand at which byte each array lies, workers put parts of them into their places; else one
array after another goes to the writer. What is under way at once is bounded in bytes, so that memory grows with the
largest array and not with the model.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import field, replace
from functools import partial
from pathlib import Path

import numpy as np

from warmstart.errors import DialectError, FormatError, Problem
from warmstart.export.aliases import find_aliases, same_bytes
from warmstart.export.layouts import LAYOUTS, check, entries_of
from warmstart.export.plan import Conversion, Row
from warmstart.export.quantize import FLOATS, Encoder, Loss, Sums, not_finite
from warmstart.export.slots import compute_slot
from warmstart.formats.checkpoint import Array, dtype_of, name_of
from warmstart.formats.mapped import Place, PutAside, forget, is_mapped, write_array
from warmstart.lean import dataclass
from warmstart.spec.mapping import Link, Reading
from warmstart.spec.op import ShapeMismatch
from warmstart.storage.crew import may_fork, processors, share
from warmstart.storage.flushing import Flushing
from warmstart.storage.progress import Progress

_BLOCK = 2**18  # elements that are encoded at a time: what lies beside each other in a core's cache
_LARGE = 2**20  # elements of an array that a worker takes at a time, where it has twice as many
_SMALL = 2**16  # elements of arrays that are not worth a worker's asking for each
_UNDER_WAY = 2**25  # bytes of arrays that are computed at once, unless a single one is larger
_WORTH = 2**22  # bytes from which processes are worth their beginning
_EACH = 2**25  # bytes for which there is one more, as long as there are processors


@dataclass
class Outcome:
    """What a conversion did: aliases, and the loss of each stored array where a report was asked for."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    losses: Mapping[str, tuple[str, Loss]] = field(default_factory=dict)


def run_conversion(
    conversion: Conversion,
    reading: Reading,
    directory: Path,
    *,
    progress: bool = False,
    meanwhile: Callable[[], None] = lambda: None,
) -> Outcome:
    """Write the arrays of ``conversion`` into ``directory``; ``meanwhile`` writes what else belongs there.

    Raises:
        DialectError: arrays of the source that should follow from others do not.
        FormatError: an array cannot be stored as asked (not finite, too large), named.
        StorageError: the disk.
    """
    layout = LAYOUTS[conversion.layout]
    check(conversion, entries_of(conversion, {}))
    with reading.putting_aside(PutAside(directory)):
        _compare(reading)
        aliases = find_aliases(conversion, reading) if layout.aliases else {}
        rows = [row for row in conversion.rows if row.name not in aliases]
        work = _Work(conversion, reading, rows, progress)
        written = replace(entries_of(conversion, aliases), state=lambda row: compute_slot(row, reading))
        if layout.placed and hasattr(os, "pwrite"):
            layout.write(directory, conversion, written, partial(work.fill, meanwhile=meanwhile))
        else:
            meanwhile()
            layout.write(directory, conversion, written, work.arrays())
    return Outcome(aliases, work.losses())


@dataclass(frozen=True)
class _Part:
    """The array of ``row``, or its rows from ``start`` until ``stop``, which are read unchecked: a part without rows
    stands for the check of the whole array."""

    row: Row
    start: int = 0
    stop: int | None = None

    @property
    def size(self) -> int:
        """Elements."""
        row = self.row
        return math.prod(row.shape) if self.stop is None else (self.stop - self.start) * math.prod(row.shape[1:])

    @property
    def stored(self) -> int:
        """Bytes that are written."""
        return self.size * dtype_of(self.row.storage.dtype).itemsize

    @property
    def cost(self) -> int:
        """Bytes that are held meanwhile: what it is computed from, and what is written."""
        return self.size * dtype_of(self.row.dtype).itemsize + self.stored


class _Work:
    """Rows on their way from the source to the writer."""

    def __init__(self, conversion: Conversion, reading: Reading, rows: Sequence[Row], progress: bool) -> None:
        self._options, self._reading, self._rows = conversion.options, reading, rows
        self._bar = Progress("converting", sum(row.nbytes for row in rows), "bytes") if progress else None
        self._sums: dict[str, list[Sums]] = {row.name: [] for row in rows}

    def losses(self) -> dict[str, tuple[str, Loss]]:
        """What was lost, by the name of the array, if a report was asked for."""
        if not self._options.report:
            return {}
        return {row.name: (row.storage.dtype, Loss.of(self._sums[row.name])) for row in self._rows}

    def fill(self, file: Flushing, places: Mapping[str, int], *, meanwhile: Callable[[], None]) -> None:
        """Put every array, and its scale, into its place."""
        tasks, handle, budget, bar = self._tasks(), file.fileno(), _Budget(_UNDER_WAY), ExitStack()
        costs = [sum(part.cost for part in task) for task in tasks]

        def work(number: int) -> None:
            with budget.of(costs[number]):
                for part in tasks[number]:
                    self._put(part, handle, places)

        counted = 0

        def done(number: int) -> None:
            nonlocal counted
            self._written(sum(part.stored for task in tasks[counted : number + 1] for part in task), file)
            counted = max(counted, number + 1)

        def begin() -> None:
            if self._bar is not None:
                bar.enter_context(self._bar)  # whose thread would have been in the way of a fork
            meanwhile()

        # Processes know nothing of each other's memory, and leave nothing but what is in the file.
        apart = self._reading.checkpoint.mapped and max(costs, default=0) <= _UNDER_WAY and not self._options.report
        processes = min(processors(), max(2, sum(costs) // _EACH)) if apart and sum(costs) >= _WORTH else 0
        with bar:
            share(len(tasks), work, done, meanwhile=begin, processes=processes if may_fork() else 0)
            done(len(tasks) - 1)

    def _tasks(self) -> list[list[_Part]]:
        """What a worker does at a time: a part of an array, an array, or several small ones."""
        parts: list[_Part] = []
        checks: list[_Part] = []
        whole: list[_Part] = []
        small: list[list[_Part]] = []
        room = 0
        for row in self._rows:
            size = math.prod(row.shape)
            if (
                size >= 2 * _LARGE
                and row.storage.scale != "whole"
                and all(map(is_mapped, row.pieces(self._reading.peek)))
            ):
                step = max(1, _LARGE * row.shape[0] // size)
                checks.append(_Part(row, 0, 0))
                parts += (_Part(row, k, min(k + step, row.shape[0])) for k in range(0, row.shape[0], step))
            elif size >= _SMALL:
                whole.append(_Part(row))
            else:
                if size > room:
                    small.append([])
                    room = _SMALL
                small[-1].append(_Part(row))
                room -= size
        whole.sort(key=lambda part: -part.cost)
        return [*([part] for part in (*checks, *parts, *whole)), *small]

    def _put(self, part: _Part, handle: int, places: Mapping[str, int]) -> None:
        row = part.row
        used: list[Array] = []
        checked = part.stop is None or part.stop == 0
        pieces = row.pieces((lambda name: self._reading.raw(name, used)) if checked else self._reading.peek)
        shape = (sum(map(len, pieces)), *pieces[0].shape[1:]) if pieces[0].ndim else ()
        if part.stop is not None:
            pieces = _cut(pieces, part.start, part.stop)
        if shape != row.shape:
            raise FormatError("an array is not as announced", where=row.name, expected=row.shape, found=shape)
        width = row.nbytes // max(1, math.prod(row.shape[:1]))
        values = Place(handle, places[row.name] + part.start * width)
        largest = max(map(_largest, pieces)) if row.storage.scale == "whole" else None
        scales: list[Array] = []
        for piece in pieces:
            if self._as_it_is(row, piece):
                write_array(values, piece)
                continue
            for _, block in _blocks(piece) if piece.ndim else [(0, piece)]:
                encoder = self._encoded(row, block, largest)
                write_array(values, encoder.values)
                scales += [] if encoder.scale is None else [encoder.scale]
                forget(block)
        if scales:
            place = Place(handle, places[f"{row.name}_scale"] + 4 * part.start)
            write_array(place, np.concatenate(scales) if row.storage.scale == "rows" else scales[0])
        for source in used if not pieces or not all(map(is_mapped, pieces)) else ():
            forget(source)

    def _written(self, count: int, file: Flushing | None = None) -> None:
        if file is not None:
            file.written(count)
        if self._bar is not None:
            self._bar.update(count)

    def arrays(self) -> Iterator[Array]:
        """What is stored, in the order of the rows; scales follow their weight."""
        from concurrent.futures import Future, ThreadPoolExecutor

        ahead: deque[tuple[Row, Future[Encoder] | None]] = deque()
        waiting, under_way = iter(self._rows), 0
        upcoming = next(waiting, None)
        with self._bar or nullcontext(), ThreadPoolExecutor(processors()) as pool:
            while upcoming is not None or ahead:
                while upcoming is not None and (not ahead or under_way + _Part(upcoming).cost <= _UNDER_WAY):
                    small = math.prod(upcoming.shape) < _SMALL
                    ahead.append((upcoming, None if small else pool.submit(self._whole, upcoming)))
                    under_way += _Part(upcoming).cost
                    upcoming = next(waiting, None)
                row, future = ahead.popleft()
                encoder = self._whole(row) if future is None else future.result()
                under_way -= _Part(row).cost
                yield encoder.values
                if encoder.scale is not None:
                    yield encoder.scale
                self._written(row.nbytes)

    def _whole(self, row: Row) -> Encoder:
        array, used = self._computed(row)
        if self._as_it_is(row, array) and array.flags.c_contiguous:
            encoder = Encoder.of_stored(row.name, array)
        else:
            encoder = self._encoded(row, array, _largest(array) if row.storage.scale == "whole" else None)
        for source in () if encoder.values is array and is_mapped(array) else used:
            forget(source)
        return encoder

    def _computed(self, row: Row) -> tuple[Array, list[Array]]:
        """The array of ``row``, and what was read for it."""
        used: list[Array] = []
        return row.compute(lambda name: self._reading.raw(name, used)), used

    def _as_it_is(self, row: Row, array: Array) -> bool:
        """Whether the elements of ``array`` are what is stored."""
        if name_of(array.dtype) != row.storage.dtype:
            return False
        if self._options.quantization != "none":
            require_finite(row.name, array)
        return row.storage.scale == "none"

    def _encoded(self, row: Row, array: Array, largest: float | None) -> Encoder:
        encoder = Encoder(row.name, array.shape, row.storage, report=self._options.report)
        if largest is not None:
            encoder.set_largest(largest)
        if array.ndim == 0:
            encoder.cast(array, encoder.values)
        else:
            for start, block in _blocks(array):
                encoder.block(block, start)
        self._sums[row.name] += encoder.sums
        return encoder


def _cut(pieces: Sequence[Array], start: int, stop: int) -> list[Array]:
    """Rows ``start`` to ``stop`` of what ``pieces`` are joined to."""
    found, first = [], 0
    for piece in pieces:
        part = piece[max(0, start - first) : max(0, stop - first)]
        found += [part] if len(part) else []
        first += len(piece)
    return found


class _Budget:
    """Bytes that threads may hold at once; a piece of work that wants more than all of them is done alone."""

    def __init__(self, most: int) -> None:
        self._most, self._used, self._changed = most, 0, threading.Condition()

    @contextmanager
    def of(self, count: int) -> Iterator[None]:
        """Hold ``count`` bytes, as soon as they are there."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + count <= self._most)
            self._used += count
        try:
            yield
        finally:
            with self._changed:
                self._used -= count
                self._changed.notify_all()


def _blocks(array: Array) -> Iterator[tuple[int, Array]]:
    """Rows of ``array``, and the number of the first: as many as are encoded at a time."""
    step = max(1, _BLOCK // max(1, array[:1].size))
    for start in range(0, max(1, len(array)), step):
        yield start, array[start : start + step]


def require_finite(name: str, array: Array) -> None:
    """What a quantization leaves as it is must be numbers, too.

    Raises:
        FormatError: it is not.
    """
    parts = _blocks(array) if array.ndim else [(0, array)]
    if array.dtype.name in FLOATS and not all(np.isfinite(part).all() for _, part in parts):
        raise not_finite(name, array.dtype.name)


def _largest(array: Array) -> float:
    """max|w|, NaN if there is one."""
    if not array.size:
        return 0.0
    return float(np.maximum(np.max(array), -np.min(array)))


def _compare(reading: Reading) -> None:
    """Arrays that follow from others must be what they follow from.

    Raises:
        DialectError: some are not; all are named.
    """
    problems = [problem for link in reading.checks if (problem := difference(link, reading))]
    if problems:
        raise DialectError(
            "arrays of the source contradict each other", where=reading.checkpoint.path, problems=problems
        )


def difference(link: Link, reading: Reading) -> Problem | None:
    """How what ``link`` says differs from what the rest of the source says, if it does."""
    arrays = [reading.checkpoint.raw(name) for name in link.foreign]
    try:
        given = link.op.forward(arrays)
    except ShapeMismatch as error:
        return Problem(f"{', '.join(link.foreign)} is not what the configuration says", found=str(error))
    for name, array in zip(link.canonical, given, strict=True):
        if not same_bytes(array, reading.raw(name)):
            return Problem(
                f"{', '.join(link.foreign)} is not the same as {name}",
                expected="one array under two names: the model is said to share it",
            )
    return None
