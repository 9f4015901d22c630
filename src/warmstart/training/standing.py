"""How a run stands: its best evaluations, how long ago the metrics that decide something improved, and what that and
the schedule make of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from warmstart.errors import ConfigError, Problem, TrainingError
from warmstart.training.config import TrainingConfig
from warmstart.training.marian import MarianClock, MarianState, begun
from warmstart.training.methods import Marian
from warmstart.training.patience import Watch, plateau_factor
from warmstart.training.schedule import learning_rate
from warmstart.training.state import Best, State


class Standing:
    """Attributes:
    best: the best evaluations so far, at most ``config.keep_best``, the best one first.
    plateaus: how many plateaus the learning rate's metric has reached.
    """

    def __init__(self, config: TrainingConfig, state: State) -> None:
        self.config = config
        self.best = list(state.best)
        self._early, self._plateau = Watch.from_dict(state.early_stopping), Watch.from_dict(state.plateau)
        self._clock: MarianClock | None = None
        if isinstance(schedule := config.schedule, Marian):
            known = MarianState.from_dict(state.schedule) if state.schedule else None
            self._clock = MarianClock(schedule, known or begun(schedule, state.step, state.position.epoch))

    @property
    def plateaus(self) -> int:
        return self._plateau.plateaus

    def fields(self) -> dict[str, Any]:
        """What of it belongs to a ``State``."""
        return {
            "best": tuple(self.best),
            "early_stopping": self._early.to_dict(),
            "plateau": self._plateau.to_dict(),
            "schedule": self._clock.state.to_dict() if self._clock else {},
        }

    def rate(self, step: int) -> float:
        """The learning rate of update ``step``, from 1."""
        peak, factor = self.config.learning_rate, plateau_factor(self.config.plateau, self.plateaus)
        return factor * (self._clock.rate(peak, step - 1) if self._clock else learning_rate(self.config, step))

    def before_update(self, step: int, epoch: int) -> None:
        """Take over that the last batch of update ``step`` is of ``epoch`` (from 0)."""
        if self._clock is not None:
            self._clock.enter_epoch(epoch, step - 1)

    def after_update(self, step: int) -> None:
        """Take over that update ``step`` was made."""
        if self._clock is not None:
            self._clock.after_update(step)

    def take_reset(self) -> bool:
        """Whether the schedule wants the optimizer to begin afresh now; said once."""
        if self._clock is None or not self._clock.reset:
            return False
        self._clock.reset = False
        return True

    def observe(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take over an evaluation; True if it ends a plateau that counts.

        Raises:
            TrainingError: a metric that decides something is not among ``metrics``.
        """
        config = self.config
        value = math.nan if config.best_metric is None else _metric(metrics, config.best_metric, "best_metric")
        if (early := config.early_stopping) is not None:
            self._early = self._early.observe(_metric(metrics, early.metric, "early_stopping.metric"), early).watch
        if math.isfinite(value):
            sign = 1 if config.best_mode == "min" else -1
            ranked = sorted([*self.best, Best(step, value)], key=lambda b: (sign * b.value, b.step))
            self.best = ranked[: config.keep_best]
        if self._clock is not None and self._clock.schedule.stalls:
            self._clock.after_evaluation(_metric(metrics, self._clock.schedule.metric, "schedule.metric"), step)
        if (rule := config.plateau) is None:
            return False
        self._plateau, _, reached = self._plateau.observe(_metric(metrics, rule.metric, "plateau.metric"), rule)
        return reached and (rule.limit is None or self.plateaus <= rule.limit)

    def out_of_patience(self) -> str | None:
        """Why the training is over, if early stopping says so."""
        rule = self.config.early_stopping
        if rule is None or not self._early.out_of_patience(rule):
            return None
        return f"{rule.metric} has not improved for {self._early.since_best} evaluations"


def check_metrics(config: TrainingConfig, measured: Collection[str]) -> None:
    """Before a training: does an evaluation measure what something is decided by?

    Raises:
        ConfigError: every metric that it does not.
    """
    problems = []
    for key, name in config.deciding_metrics.items():
        if name not in measured:
            near = get_close_matches(name, measured, n=1)
            todo = f"did you mean {near[0]}?" if near else None
            problems.append(Problem(f"there is no metric {name!r}", where=f"training.{key}", todo=todo))
    if problems:
        raise ConfigError(
            "a metric that decides something is not measured",
            expected=f"one of {', '.join(sorted(measured))}",
            problems=problems,
        )


def _metric(measured: Mapping[str, float], name: str, key: str) -> float:
    if name not in measured:
        raise TrainingError(
            "a metric that decides something is not measured",
            where=f"training.{key}",
            expected=", ".join(sorted(measured)),
            found=name,
        )
    return float(measured[name])
