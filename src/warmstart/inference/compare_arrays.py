"""Arrays that two models give for the same inputs: how far are they from each other?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import DialectError
from warmstart.inference.sides import Answer, ArraySide, Given
from warmstart.inference.tolerance import Judge
from warmstart.lean import dataclass


@dataclass
class _Found:
    """What was seen of one array so far. Differences of states are parts of their size, of log-probabilities in natural
    logarithms; ``squares`` are of the log-probabilities about their means."""

    unit: str
    largest: float = -1.0
    total: float = 0.0
    values: int = 0
    where: dict[str, Any] = field(default_factory=dict)
    squares: float = 0.0
    moved_largest: float = 0.0
    moved_total: float = 0.0

    def add(self, k: int, left: Answer, right: Answer) -> None:
        apart = _apart(left, right)
        if apart.max() > self.largest:
            place = np.unravel_index(int(apart.argmax()), apart.shape)
            self.largest, self.where = float(apart.max()), {"input": k, "index": [int(index) for index in place]}
        self.total += float(apart.sum())
        self.values += apart.size
        wide = np.asarray(left.values, np.float64)
        self.squares += float(np.square(wide - wide.mean(-1, keepdims=True)).sum())

    def add_moved(self, one: Answer, other: Answer) -> None:
        apart = _apart(one, other)
        self.moved_largest = max(self.moved_largest, float(apart.max()))
        self.moved_total += float(apart.sum())

    def judged(self, name: str, judge: Judge) -> dict[str, Any]:
        values = max(1, self.values)
        spread = 1.0 if self.unit == "states" else math.sqrt(self.squares / values)
        allowed = judge.allowed(spread, (self.moved_largest, self.moved_total / values))
        mean = self.total / values
        return {
            "name": name, "unit": self.unit, "values": self.values, "largest": self.largest, "mean": mean,
            "where": self.where, "tolerance": allowed.largest, "mean_tolerance": allowed.mean,
            "same": self.largest <= allowed.largest and mean <= allowed.mean,
        }  # fmt: skip


def compare_arrays(a: ArraySide, b: ArraySide, inputs: Sequence[Given], judge: Judge) -> list[dict[str, Any]]:
    """For each array that the sides give: its unit, largest and mean difference, and what is allowed of each.

    Raises:
        DialectError: the two give other arrays, or of other shapes.
    """
    found: dict[str, _Found] = {}
    for k, given in enumerate(inputs):
        pair = a.answers(given), b.answers(given)
        _require_alike(pair, k)
        again = judge.again.answers(given) if judge.again is not None else {}
        for name, left in pair[0].items():
            facts = found.setdefault(name, _Found(left.unit))
            facts.add(k, left, pair[1][name])
            if name in again:
                facts.add_moved(pair[judge.rounded][name], again[name])
    return [facts.judged(name, judge) for name, facts in found.items()]


def _apart(a: Answer, b: Answer) -> NDArray[np.float64]:
    """How far each value of ``b`` is from that of ``a``; what is no number on one side alone is infinitely far."""
    left, right = np.asarray(a.values, np.float64), np.asarray(b.values, np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where(left == right, 0.0, np.abs(left - right))
    apart = np.nan_to_num(apart, nan=np.inf, posinf=np.inf)
    if a.unit == "states":
        size = float(np.sqrt(np.mean(np.square(left))))
        apart = apart / size if size > 0 else apart
    return apart


def _require_alike(pair: tuple[dict[str, Answer], dict[str, Answer]], k: int) -> None:
    shapes = [{name: list(answer.values.shape) for name, answer in side.items()} for side in pair]
    if shapes[0] != shapes[1]:
        raise DialectError(
            "the two models do not give the same arrays", where=f"input {k + 1}", expected=shapes[0], found=shapes[1]
        )
