"""Values that change over a training: ``v``, ``v~r``, ``a:b`` and ``a:b~r``."""

from __future__ import annotations

import math
from typing import Self

from numpy.random import Generator

from warmstart.lean import dataclass

FORMS = "v, v~r, a:b or a:b~r"


@dataclass(frozen=True)
class Numbers:
    """From ``start`` at clock 0 to ``end`` at clock 1, plus or minus up to ``radius``, evenly spread."""

    start: float
    end: float
    radius: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ``ValueError`` with what is allowed."""
        body, tilde, radius = text.partition("~")
        start, colon, end = body.partition(":")
        parts = [start, end if colon else start, radius if tilde else "0"]
        try:
            return cls(*(cls._number(part.strip()) for part in parts))
        except ValueError:
            raise ValueError(f"{text!r} is none of {FORMS}, with {cls.described()}") from None

    @classmethod
    def _number(cls, text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(text)
        return value

    @classmethod
    def described(cls) -> str:
        return "numbers for v, a, b and r"

    @property
    def moves(self) -> bool:
        """Whether the clock changes anything."""
        return self.start != self.end

    @property
    def lowest(self) -> float:
        return min(self.start, self.end) - abs(self.radius)

    @property
    def highest(self) -> float:
        return max(self.start, self.end) + abs(self.radius)

    def pick(self, clock: float, random: Generator) -> float:
        """One value at ``clock``."""
        middle = self.start + clock * (self.end - self.start)
        return middle + (self.radius * random.uniform(-1.0, 1.0) if self.radius else 0.0)


@dataclass(frozen=True)
class Wholes(Numbers):
    """The same of whole numbers, rounded."""

    @classmethod
    def _number(cls, text: str) -> float:
        return int(text)

    @classmethod
    def described(cls) -> str:
        return "whole numbers for v, a, b and r"

    def count(self, clock: float, random: Generator) -> int:
        return round(self.pick(clock, random))
