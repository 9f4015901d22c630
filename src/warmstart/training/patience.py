"""Watching a metric for the moment at which it stops getting better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from warmstart.lean import dataclass
from warmstart.training.config import Patience, Plateau


class Seen(NamedTuple):
    """What an evaluation meant: the watch after it, whether the metric improved, and whether it ends a plateau."""

    watch: Watch
    improved: bool
    plateau: bool


@dataclass(frozen=True)
class Watch:
    """How a metric has done so far.

    Attributes:
        best: the value of the last improvement; None before any.
        since_best: evaluations since then.
        plateaus: how often ``patience`` of them in a row were without an improvement.
    """

    best: float | None = None
    since_best: int = 0
    plateaus: int = 0

    def observe(self, value: float | None, rule: Patience) -> Seen:
        """The watch after an evaluation.

        The first number improves, and then one that is better than ``best`` by at least ``min_change``, so that small
        gains add up. None, NaN and infinity never do.
        """
        gain = -math.inf
        if value is not None and math.isfinite(value):
            gain = math.inf if self.best is None else self.best - value if rule.mode == "min" else value - self.best
        if gain > 0.0 and gain >= rule.min_change:
            return Seen(Watch(value, 0, self.plateaus), True, False)
        since = self.since_best + 1
        plateau = since % rule.patience == 0
        return Seen(Watch(self.best, since, self.plateaus + plateau), False, plateau)

    def out_of_patience(self, rule: Patience) -> bool:
        """Whether a training with this rule for early stopping is over."""
        return self.since_best >= rule.patience

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Watch:
        """What :meth:`to_dict` gave."""
        return cls(**raw)


def plateau_factor(rule: Plateau | None, plateaus: int) -> float:
    """What the learning rate is multiplied by after so many plateaus; beyond ``limit`` they change nothing."""
    if rule is None:
        return 1.0
    return float(rule.factor ** (plateaus if rule.limit is None else min(plateaus, rule.limit)))
