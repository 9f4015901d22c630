"""The bytes of a pickle, taken from the front: numbers, counted runs and lines, never past the end."""

from __future__ import annotations

import mmap
import struct
from typing import Any

from warmstart.formats.pickled import Refused

U1, U2, I4, U4, U8 = (struct.Struct(f"<{code}") for code in "BHiIQ")
F8 = struct.Struct(">d")
MAX_LINE = 3000  # characters of a number or a name, where pickles write them as text


class Stream:
    """``data`` from ``start``; ``position`` is how far it was read."""

    def __init__(self, data: bytes | mmap.mmap, start: int = 0) -> None:
        self.data, self.start, self.position = data, start, start

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise Refused(f"{count} bytes are announced and {len(self.data) - self.position} are left")
        part = self.data[self.position : end]
        self.position = end
        return part

    def byte(self) -> int:
        value = self.data[self.position]
        self.position += 1
        return value

    def number(self, layout: struct.Struct) -> Any:
        return layout.unpack(self.take(layout.size))[0]

    def counted(self, layout: struct.Struct) -> bytes:
        count = self.number(layout)
        if count < 0:
            raise Refused("a negative length")
        return self.take(count)

    def line(self, bound: int | None = MAX_LINE) -> bytes:
        limit = len(self.data) if bound is None else self.position + bound
        end = self.data.find(b"\n", self.position, limit)
        if end < 0:
            raise Refused("a line does not end")
        line = self.data[self.position : end]
        self.position = end + 1
        return line
