"""Learning rates that are pure functions of the update; Marian's, which has a state, is in ``marian``."""

from __future__ import annotations

import math

from warmstart.training.config import TrainingConfig
from warmstart.training.methods import T5X, Constant, Cosine, InverseSqrt, Linear


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The absolute rate of update ``step``, counted from 1.

    What plateaus do to it comes on top. With r the configured rate, w = warmup and p = (step - w) / (steps - w), held
    within [0, 1]:

    * every own schedule: r·step / w while step < w; then
    * ``inverse_sqrt``: r·√(w / step);
    * ``constant``: r;
    * ``linear``: r·(1 - (1 - end_factor)·p);
    * ``cosine``: r·(end_factor + (1 - end_factor)·(1 + cos πp) / 2);
    * ``t5x``: see :func:`t5x_rate`; T5X counts from 0, so this is the rate of its step ``step`` - 1.
    """
    rate, schedule = config.learning_rate, config.schedule
    if isinstance(schedule, T5X):
        return t5x_rate(schedule, rate, step - 1)
    if not isinstance(schedule, InverseSqrt | Constant | Linear | Cosine):
        raise TypeError(f"{schedule.type} is no function of the update alone")
    return rate * _factor(schedule, step, config.steps)


def _factor(schedule: InverseSqrt | Constant | Linear | Cosine, step: int, steps: int) -> float:
    warmup = schedule.warmup
    if step < warmup:
        return step / warmup
    if isinstance(schedule, InverseSqrt):
        return math.sqrt(warmup / step)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    if isinstance(schedule, Linear):
        return 1.0 - (1.0 - schedule.end_factor) * progress
    if isinstance(schedule, Cosine):
        return schedule.end_factor + (1.0 - schedule.end_factor) * (1.0 + math.cos(math.pi * progress)) / 2.0
    return 1.0


def t5x_rate(schedule: T5X, rate: float, step: int) -> float:
    """T5X's rate in its ``step`` (from 0): ``create_learning_rate_scheduler`` of ``t5x/utils.py``.

    With s = max(0, step - step_offset) and w = warmup_steps, the product of those named, but at least
    ``min_learning_rate``:

    * ``constant``: rate;  ``linear_warmup``: min(1, s / w);
    * ``linear_decay``: rate·min(s / w, 1 + decay_factor·(w - s)), which stands for the first two as well;
    * ``rsqrt_decay``: 1 / √max(s, w);  ``rsqrt_normalized_decay``: √(w / max(s, w));
    * ``decay_every``: decay_factor^⌊s / steps_per_decay⌋;
    * ``cosine_decay``: (1 + cos πq) / 2, q the fraction of max(0, s - w) / steps_per_cycle.
    """
    step, warmup = max(0, step - schedule.step_offset), schedule.warmup_steps
    cycle = max(0, step - warmup) / schedule.steps_per_cycle % 1.0
    values = {
        "constant": rate,
        "linear_warmup": min(1.0, step / warmup),
        "linear_decay": rate * min(step / warmup, 1.0 + schedule.decay_factor * (warmup - step)),
        "rsqrt_decay": 1.0 / math.sqrt(max(step, warmup)),
        "rsqrt_normalized_decay": math.sqrt(warmup / max(step, warmup)),
        "decay_every": schedule.decay_factor ** (step // schedule.steps_per_decay),
        "cosine_decay": (1.0 + math.cos(math.pi * cycle)) / 2.0,
    }
    return max(math.prod(values[name] for name in schedule.names), schedule.min_learning_rate)
