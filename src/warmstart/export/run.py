"""A conversion carried out: one target array after another, read, computed and written at the same time.

Threads compute (numpy releases the lock); large arrays are encoded in blocks of rows. What is under way at once is
bounded in bytes, so that memory grows with the largest array and not with the model.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from warmstart.errors import DialectError, Problem
from warmstart.export.aliases import find_aliases, same_bytes
from warmstart.export.layouts import LAYOUTS, check, entries_of
from warmstart.export.plan import Conversion, Row
from warmstart.export.quantize import FLOATS, Encoder, Loss, not_finite
from warmstart.export.slots import compute_slot
from warmstart.formats.checkpoint import Array, dtype_of
from warmstart.formats.mapped import PutAside, forget, is_mapped
from warmstart.spec.mapping import Link, Reading
from warmstart.spec.op import ShapeMismatch
from warmstart.storage.progress import Progress

_BLOCK = 2**19  # elements that one thread encodes at a time: with fewer, threads wait more than they work
_LARGE = 2**21  # elements from which an array is encoded in blocks
_SMALL = 2**16  # elements below which to hand an array to another thread costs more than to encode it
_UNDER_WAY = 2**25  # bytes of arrays that are computed ahead of the writer


@dataclass
class Outcome:
    """What a conversion did: aliases, and the loss of each stored array where a report was asked for."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    losses: dict[str, tuple[str, Loss]] = field(default_factory=dict)


def run_conversion(conversion: Conversion, reading: Reading, directory: Path, *, progress: bool = False) -> Outcome:
    """Write the arrays of ``conversion`` into ``directory``.

    Raises:
        DialectError: arrays of the source that should follow from others do not.
        FormatError: an array cannot be stored as asked (not finite, too large), named.
        StorageError: the disk.
    """
    layout = LAYOUTS[conversion.layout]
    check(conversion, entries_of(conversion, {}))
    aside = reading.putting_aside(PutAside(directory))
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool, aside:
        _compare(reading, pool)
        aliases = find_aliases(conversion, reading) if layout.aliases else {}
        outcome = Outcome(aliases)
        rows = [row for row in conversion.rows if row.name not in aliases]
        with Progress("converting", sum(row.nbytes for row in rows), "bytes") as bar:
            work = _Work(conversion, reading, pool, outcome, bar if progress else None)
            written = replace(entries_of(conversion, aliases), state=lambda row: compute_slot(row, reading))
            layout.write(directory, conversion, written, work.arrays(rows))
    return outcome


class _Work:
    """Rows on their way from the source to the writer."""

    def __init__(
        self, conversion: Conversion, reading: Reading, pool: ThreadPoolExecutor, outcome: Outcome, bar: Progress | None
    ) -> None:
        self._options, self._reading, self._pool = conversion.options, reading, pool
        self._outcome, self._bar = outcome, bar

    def arrays(self, rows: list[Row]) -> Iterator[Array]:
        """What is stored, in the order of the rows; scales follow their weight."""
        ahead: deque[tuple[Row, Future[Encoder] | None]] = deque()
        waiting, under_way = iter(rows), 0
        upcoming = next(waiting, None)
        while upcoming is not None or ahead:
            while upcoming is not None and (not ahead or under_way + _cost(upcoming) <= _UNDER_WAY):
                size = math.prod(upcoming.shape)
                if size < _SMALL:
                    ahead.append((upcoming, None))
                elif size >= _LARGE:
                    if ahead:
                        break
                    ahead.append((upcoming, _done(self._in_blocks(upcoming))))
                else:
                    ahead.append((upcoming, self._pool.submit(self._whole, upcoming)))
                under_way += _cost(upcoming)
                upcoming = next(waiting, None)
            row, future = ahead.popleft()
            encoder = self._whole(row) if future is None else future.result()
            under_way -= _cost(row)
            yield encoder.values
            if encoder.scale is not None:
                yield encoder.scale
            if self._options.report:
                self._outcome.losses[row.name] = (row.storage.dtype, encoder.loss())
            if self._bar is not None:
                self._bar.update(row.nbytes)

    def _encoder(self, row: Row) -> Encoder:
        return Encoder(row.name, row.shape, row.storage, report=self._options.report)

    def _whole(self, row: Row) -> Encoder:
        array, used, stored = self._computed(row)
        if stored is not None:
            return stored
        encoder = self._encoder(row)
        if array.ndim == 0:
            encoder.cast(array, encoder.values)
            return encoder
        if row.storage.scale == "whole":
            encoder.set_largest(_largest(array))
        for start, block in _blocks(array):
            encoder.block(block, start)
        for source in used:
            forget(source)
        return encoder

    def _in_blocks(self, row: Row) -> Encoder:
        array, used, stored = self._computed(row)
        if stored is not None:
            return stored
        encoder = self._encoder(row)
        if row.storage.scale == "whole":
            encoder.set_largest(max(self._pool.map(lambda part: _largest(part[1]), _blocks(array))))

        def work(part: tuple[int, Array]) -> None:
            encoder.block(part[1], part[0])
            forget(part[1])

        for _ in self._pool.map(work, _blocks(array)):
            pass
        for source in used:
            forget(source)
        return encoder

    def _computed(self, row: Row) -> tuple[Array, list[Array], Encoder | None]:
        """The array of ``row``, what was read for it, and the end of the work where the array's own bytes are what is
        stored: the writer takes them from the source's mapped file."""
        used: list[Array] = []
        array = row.compute(lambda name: self._reading.raw(name, used))
        if self._options.quantization != "none" and array.dtype.name == row.storage.dtype:
            require_finite(row.name, array)
        if row.storage.scale != "none" or array.dtype.name != row.storage.dtype or not array.flags.c_contiguous:
            return array, used, None
        for source in () if is_mapped(array) else used:
            forget(source)
        return array, used, Encoder.of_stored(row.name, array)


def _done(encoder: Encoder) -> Future[Encoder]:
    future: Future[Encoder] = Future()
    future.set_result(encoder)
    return future


def _cost(row: Row) -> int:
    """Bytes that are held while ``row`` is under way: what it is computed from, and what is stored."""
    return math.prod(row.shape) * dtype_of(row.dtype).itemsize + row.nbytes


def _blocks(array: Array) -> Iterator[tuple[int, Array]]:
    step = max(1, _BLOCK // max(1, array[:1].size))
    for start in range(0, len(array), step):
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


def _compare(reading: Reading, pool: ThreadPoolExecutor) -> None:
    """Arrays that follow from others must be what they follow from.

    Raises:
        DialectError: some are not; all are named.
    """
    problems = [problem for problem in pool.map(lambda link: difference(link, reading), reading.checks) if problem]
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
