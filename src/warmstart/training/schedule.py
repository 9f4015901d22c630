"""Learning rate factors as pure functions of the step."""

from __future__ import annotations

import math

from warmstart.training.config import T5X, Cosine, InverseSqrt, Linear, Marian, Schedule


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """The number in [0, 1] that the peak learning rate is multiplied by in update ``step`` (1-based) of ``steps``.

    With w = warmup and p = (step - w) / (steps - w), held within [0, 1]:

    * every schedule: step / w while step < w;
    * ``inverse_sqrt``: √(w / step), which is Marian's ``--lr-warmup w --lr-decay-inv-sqrt w``;
    * ``constant``: 1;
    * ``linear``: 1 - (1 - end_factor)·p;
    * ``cosine``: end_factor + (1 - end_factor)·(1 + cos πp) / 2.
    """
    if isinstance(schedule, Marian | T5X):
        raise NotImplementedError
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
