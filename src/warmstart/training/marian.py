"""Marian's schedule of the learning rate: it depends on what has happened, so it has a state.

Everything here follows marian-dev ``src/training/scheduler.h`` and ``training_state.h``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from typing import Any

from pydantic import ValidationError

from warmstart.errors import ConfigError, Problem, validation_problems
from warmstart.lean import dataclass
from warmstart.training.config import Patience
from warmstart.training.methods import Marian, OfSource
from warmstart.training.patience import Watch

_PARAMETER = re.compile(r"(\d+(?:\.\d+)?)([kKMGT]?)([ute]?)")
_THOUSANDS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class MarianState:
    """What Marian's scheduler remembers.

    Attributes:
        epoch: Marian's, from 1.
        data_epoch: the epoch of the data that it stands for, from 0.
        factor: the product of all decays so far.
        warmup_start: updates that were done when the warm-up last began.
        warmup_used: the same, as it is in the rate in force: Marian computes a rate and then restarts the warm-up, so
            that the update after a decay still has the full rate.
        reloaded: the warm-up begins again after the next update (``warmup_at_reload``).
        watch: of the evaluations.
        most_stalled: the most evaluations in a row, ever, that did not improve.
    """

    epoch: int = 1
    data_epoch: int = 0
    factor: float = 1.0
    warmup_start: int = 0
    warmup_used: int = 0
    reloaded: bool = False
    watch: Watch = field(default_factory=Watch)
    most_stalled: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> MarianState:
        """What :meth:`to_dict` gave."""
        return cls(**{**raw, "watch": Watch.from_dict(raw["watch"])})


def begun(schedule: Marian, done: int, data_epoch: int) -> MarianState:
    """Where nobody kept a state: as if every update and epoch so far had been under ``schedule``, without stalling and
    without a repeated warm-up."""
    first, epoch, times = schedule.starts[0], data_epoch + 1, 0
    if schedule.decay and first and schedule.decay_strategy.startswith("epoch"):
        times = max(0, epoch - max(first, 2) + 1)
    elif schedule.decay and first and schedule.decay_strategy == "batches" and done >= first:
        times = (done - first) // schedule.decay_every + 1
    return MarianState(epoch, data_epoch, schedule.decay**times, reloaded=schedule.warmup_at_reload)


class MarianClock:
    """The schedule as it goes on; ``reset`` says that the optimizer is to begin afresh, until somebody sets it back."""

    def __init__(self, schedule: Marian, state: MarianState) -> None:
        self.schedule, self.state = schedule, state
        self.reset = False

    def rate(self, peak: float, done: int) -> float:
        """The rate of the update after ``done`` others.

        The product of

        * start + (peak - start)·min(1, (done - ``warmup_used``) / warmup), with start = ``warmup_start_rate``;
        * √(N / (done - start + N)) once done > start, for N = ``inv_sqrt`` and start = ``inv_sqrt_start`` (N if None);
        * the decays so far.

        Marian's log line ``Up. n`` shows the rate of update n + 1; with a warm-up from zero its first update changes
        nothing.
        """
        schedule, rate = self.schedule, peak
        if schedule.warmup:
            start = schedule.warmup_start_rate
            rate = start + (peak - start) * min(1.0, (done - self.state.warmup_used) / schedule.warmup)
        start_decay = schedule.inv_sqrt if schedule.inv_sqrt_start is None else schedule.inv_sqrt_start
        if schedule.inv_sqrt and done > start_decay:
            rate *= math.sqrt(schedule.inv_sqrt / (done - start_decay + schedule.inv_sqrt))
        return rate * self.state.factor

    def after_update(self, done: int) -> None:
        """Update number ``done`` was made (``actAfterBatches``)."""
        schedule, first = self.schedule, self.schedule.starts[0]
        self._compute()
        if schedule.decay_strategy == "batches" and 0 < first <= done and (done - first) % schedule.decay_every == 0:
            self._decay(done)
        if self.state.reloaded or (schedule.warmup_cycle and done % schedule.warmup == 0):
            self.state = replace(self.state, warmup_start=done, reloaded=False)

    def enter_epoch(self, data_epoch: int, done: int) -> None:
        """The next batch is of ``data_epoch``, after ``done`` updates (``actAfterEpoch``, for each that ended)."""
        strategy, (first, second) = self.schedule.decay_strategy, self.schedule.starts
        while self.state.data_epoch < data_epoch:
            self.state = replace(self.state, epoch=self.state.epoch + 1, data_epoch=self.state.data_epoch + 1)
            self._compute()
            decays = strategy.startswith("epoch") and 0 < first <= self.state.epoch
            if strategy == "epoch+batches":
                decays |= 0 < second <= done
            if strategy == "epoch+stalled":
                decays |= 0 < second <= self.state.most_stalled
            if decays:
                self._decay(done)

    def after_evaluation(self, value: float, done: int) -> None:
        """``schedule.metric`` was measured (``actAfterStalled``, if it did not improve)."""
        schedule, state, first = self.schedule, self.state, self.schedule.starts[0]
        rule = Patience(metric=schedule.metric, mode=schedule.mode, patience=1, min_change=schedule.min_change)
        watch = state.watch.observe(value, rule).watch
        stalled = watch.since_best
        self.state = replace(state, watch=watch, most_stalled=max(state.most_stalled, stalled))
        if stalled:
            self._compute()
            if schedule.decay_strategy == "stalled" and first > 0 and stalled % first == 0:
                self._decay(done)

    def _compute(self) -> None:
        """As Marian computes a rate: what was said of the warm-up before is in force from now on."""
        self.state = replace(self.state, warmup_used=self.state.warmup_start)

    def _decay(self, done: int) -> None:
        if self.schedule.decay > 0.0:
            start = done if self.schedule.decay_repeat_warmup else self.state.warmup_start
            self.state = replace(self.state, factor=self.state.factor * self.schedule.decay, warmup_start=start)
            self.reset |= self.schedule.decay_reset_optimizer


# --- what lies beside a Marian model --------------------------------------------------------------------------------


def of_progress(progress: Mapping[str, Any]) -> MarianState:
    """The state in ``model.npz.progress.yml``. The best value is not taken over: it is of another metric's name.

    Raises:
        ConfigError: the warm-up is counted in something else than updates, or a value is none.
    """
    try:
        start, unit = _parameter(progress.get("warmup-start", 0))
        if start and unit != "u":
            raise ValueError("warmup-start is not counted in updates")
        return MarianState(
            epoch=int(progress.get("epochs", 1)),
            factor=float(progress.get("eta-factor", 1.0)),
            warmup_start=start,
            warmup_used=start,
            most_stalled=int(progress.get("stalled-max", 0)),
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "the progress of the Marian model cannot be taken over", found=error, todo="use `step: fresh`"
        ) from None


def of_options(options: Mapping[str, Any], own: OfSource) -> Marian:
    """The schedule that a Marian model's options say.

    Raises:
        ConfigError: every option that there is no key for.
    """
    problems: list[Problem] = []

    def updates(name: str, value: Any) -> int:
        try:
            number, unit = _parameter(value)
            if number and unit != "u":
                raise ValueError("it does not count updates")
        except ValueError as error:
            problems.append(Problem(f"lr-{name}: {error}", expected="a number of updates", found=str(value)))
            return 0
        return number

    roots = options.get("lr-decay-inv-sqrt") or [0]
    roots = [updates("decay-inv-sqrt", value) for value in (roots if isinstance(roots, list) else [roots])]
    found: dict[str, Any] = {
        "warmup": updates("warmup", options.get("lr-warmup", 0)),
        "inv_sqrt": roots[0],
        "warmup_start_rate": options.get("lr-warmup-start-rate", 0.0),
    }
    if len(roots) > 1:
        found["inv_sqrt_start"] = roots[1]
    if found["warmup"]:
        found |= {f"warmup_{k}": options.get(f"lr-warmup-{k.replace('_', '-')}", False) for k in ("cycle", "at_reload")}
    if options.get("lr-decay"):
        found |= _decay_options(options, own, bool(found["warmup"]))
        stops_on = options.get("early-stopping-on", "first")
        if "stalled" in str(found["decay_strategy"]) and stops_on != "first":
            problems.append(
                Problem("early-stopping-on: evaluations stall by one metric", expected="first", found=stops_on)
            )
    try:
        schedule = Marian.model_validate(found)
    except ValidationError as error:
        problems += validation_problems(error)
    if problems:
        raise ConfigError(
            "the schedule of the source cannot be taken over",
            todo="write `training.schedule: {type: marian, …}` as it shall be",
            problems=problems,
        )
    return schedule


def _decay_options(options: Mapping[str, Any], own: OfSource, warmup: bool) -> dict[str, Any]:
    strategy = options.get("lr-decay-strategy", "epoch+stalled")
    starts = options.get("lr-decay-start", [10, 1])
    starts = starts if isinstance(starts, list) else [starts]
    found: dict[str, Any] = {
        "decay": options["lr-decay"],
        "decay_strategy": strategy,
        "decay_start": tuple(starts) if "+" in str(strategy) else starts[0],
        "decay_every": options.get("lr-decay-freq", 50_000),
        "decay_reset_optimizer": options.get("lr-decay-reset-optimizer", False),
        "decay_repeat_warmup": warmup and options.get("lr-decay-repeat-warmup", False),
    }
    if "stalled" in str(strategy):
        epsilon = options.get("early-stopping-epsilon") or 0.0
        found |= {"metric": own.metric, "mode": own.mode}
        found["min_change"] = epsilon[0] if isinstance(epsilon, list) else epsilon
    return found


def _parameter(value: Any) -> tuple[int, str]:
    """(number, unit) of a parameter such as ``16000``, ``300Ku`` (updates), ``1Gt`` (target labels) or ``2e`` (epochs):
    ``src/common/scheduling_parameter.h``. Raises ``ValueError``."""
    match = _PARAMETER.fullmatch(str(value).replace(",", ""))
    if match is None:
        raise ValueError("it is no such number")
    number, thousands, unit = match.groups()
    return int(float(number) * _THOUSANDS[thousands]), unit or "u"
