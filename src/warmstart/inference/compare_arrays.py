"""Arrays that two models give for the same inputs: how far are they from each other?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from warmstart.errors import DialectError
from warmstart.inference.sides import Answer, ArraySide, Given

MEAN = 0.1  # of the tolerance


def compare_arrays(a: ArraySide, b: ArraySide, inputs: Sequence[Given], tolerances: Mapping[str, float]) -> list[Any]:
    """For each array that the sides give: its unit, largest and mean difference, and what is allowed of each.

    ``tolerances`` is unit → largest difference; the mean must be below a tenth of it.

    Raises:
        DialectError: the two give other arrays, or of other shapes.
    """
    found: dict[str, dict[str, Any]] = {}
    for k, given in enumerate(inputs):
        pair = a.answers(given), b.answers(given)
        _require_alike(pair, k)
        for name, left in pair[0].items():
            largest, mean, place, values = _difference(left, pair[1][name])
            facts = found.setdefault(
                name, {"name": name, "unit": left.unit, "largest": -1.0, "total": 0.0, "values": 0}
            )
            facts["total"] += mean * values
            facts["values"] += values
            if largest > facts["largest"]:
                facts |= {"largest": largest, "where": {"input": k, "index": place}}
    return [_judged(facts, tolerances[facts["unit"]]) for facts in found.values()]


def _judged(facts: dict[str, Any], tolerance: float) -> dict[str, Any]:
    mean = facts.pop("total") / max(1, facts["values"])
    same = facts["largest"] <= tolerance and mean <= MEAN * tolerance
    return {**facts, "mean": mean, "tolerance": tolerance, "mean_tolerance": MEAN * tolerance, "same": same}


def _difference(a: Answer, b: Answer) -> tuple[float, float, list[int], int]:
    """Largest and mean difference, where the largest is, and how many values were compared."""
    left, right = np.asarray(a.values, np.float64), np.asarray(b.values, np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where(left == right, 0.0, np.abs(left - right))
    apart = np.nan_to_num(apart, nan=np.inf, posinf=np.inf)
    if a.unit == "states":
        size = float(np.sqrt(np.mean(np.square(left))))
        apart = apart / size if size > 0 else apart
    place = np.unravel_index(int(apart.argmax()), apart.shape)
    return float(apart.max()), float(apart.mean()), [int(index) for index in place], apart.size


def _require_alike(pair: tuple[dict[str, Answer], dict[str, Answer]], k: int) -> None:
    shapes = [{name: list(answer.values.shape) for name, answer in side.items()} for side in pair]
    if shapes[0] != shapes[1]:
        raise DialectError(
            "the two models do not give the same arrays", where=f"input {k + 1}", expected=shapes[0], found=shapes[1]
        )
