"""Short sequences side by side: attention over one row of them costs less than over several short rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from warmstart.lean import dataclass

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Cells:
    """Sequence i, of ``sizes[i]`` tokens, stands in cell ``cell[i]`` from entry ``first[i]`` on (each [B]).

    Sequences keep their order; cells are numbered from 0, without gaps.
    """

    sizes: Ints
    cell: Ints
    first: Ints

    @classmethod
    def pack(cls, sizes: Ints, room: int, most: int) -> Cells:
        """Cells of up to ``most`` sequences with together up to ``room`` tokens, or of one."""
        cell, first = np.zeros_like(sizes), np.zeros_like(sizes)
        number = count = used = 0
        for i, size in enumerate(sizes.tolist()):
            if count and (count >= most or used + size > room):
                number, count, used = number + 1, 0, 0
            cell[i], first[i] = number, used
            count, used = count + 1, used + size
        return cls(sizes, cell, first)

    @property
    def count(self) -> int:
        return int(self.cell[-1]) + 1

    @property
    def entries(self) -> int:
        """Entries of the fullest cell."""
        return int((self.first + self.sizes).max())

    @cached_property
    def positions(self) -> Ints:
        """Position in its sequence of each of all N tokens."""
        positions: Ints = np.arange(self.sizes.sum()) - np.repeat(np.cumsum(self.sizes) - self.sizes, self.sizes)
        return positions

    def tokens(self, entries: int) -> Ints:
        """Which of all N tokens stands at each of a cell's ``entries`` [C, entries]; -1 where none does."""
        tokens = np.full(self.count * entries, -1)
        tokens[np.repeat(self.cell * entries + self.first, self.sizes) + self.positions] = np.arange(self.sizes.sum())
        return tokens.reshape(-1, entries)

    def owners(self, entries: int) -> Ints:
        """To which sequence each of a cell's ``entries`` belongs [C, entries]; -1 where it is free."""
        owners: Ints = np.append(np.repeat(np.arange(len(self.sizes)), self.sizes), -1)[self.tokens(entries)]
        return owners

    def split(self, tokens: int) -> Iterator[Cells]:
        """Parts of whole cells with up to ``tokens`` tokens, or of one cell."""
        ends = [*np.flatnonzero(self.first == 0).tolist(), len(self.sizes)]
        before = [0, *np.cumsum(self.sizes).tolist()]
        start = 0
        for begin, end in pairwise(ends):
            if begin > start and before[end] - before[start] > tokens:
                yield self._part(start, begin)
                start = begin
        yield self._part(start, len(self.sizes))

    def _part(self, start: int, end: int) -> Cells:
        return Cells(self.sizes[start:end], self.cell[start:end] - self.cell[start], self.first[start:end])
