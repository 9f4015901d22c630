"""The plan: for every parameter of the model to be trained where its first value comes from, and for every array
of every source where it goes. Pure data from headers; nothing is loaded that the plan does not say."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from warmstart.bootstrap.start import Answers
from warmstart.lean import dataclass

Action = Literal["load", "load rows", "resize", "initialise"]


@dataclass(frozen=True)
class Row:
    """The start of one storage. ``rows[k]`` is the source row of target row k, -1 for an initialised one; None where
    the whole array is taken. ``arrays`` are the names in the source's file."""

    target: str
    shape: tuple[int, ...]
    stage: str
    action: Action
    reason: str
    source: int | None = None
    canonical: str | None = None
    arrays: tuple[str, ...] = ()
    rows: tuple[int, ...] | None = None
    initialiser: str = ""

    @property
    def size(self) -> int:
        count = 1
        for n in self.shape:
            count *= n
        return count

    @property
    def loaded(self) -> int:
        """Number of elements that come from a source."""
        if self.action == "initialise":
            return 0
        if self.rows is None:
            return self.size
        return sum(r >= 0 for r in self.rows) * (self.size // max(1, self.shape[0]))


@dataclass(frozen=True)
class SlotRow:
    """Optimizer state of one storage: carried from ``slot`` of the source (``axis``: averaged axis), or not."""

    target: str
    slot: str
    action: Literal["load", "fresh"]
    reason: str
    source: int | None = None
    axis: int | None = None


@dataclass(frozen=True)
class Leftover:
    """An array of a source that goes nowhere, and why."""

    source: int
    array: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """See the module. ``answers`` and ``sources`` have one item for each start."""

    sources: tuple[str, ...]
    modes: tuple[str, ...]
    answers: tuple[Answers, ...]
    rows: tuple[Row, ...]
    slots: tuple[SlotRow, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    notes: tuple[str, ...] = ()
    step: int = 0

    @property
    def coverage(self) -> float:
        """Share of the model's elements that come from a source, 0 to 1."""
        total = sum(r.size for r in self.rows)
        return sum(r.loaded for r in self.rows) / total if total else 0.0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "coverage": self.coverage}
