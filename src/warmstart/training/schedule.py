"""The learning rate, as a pure function of the update and the epoch."""

from __future__ import annotations

import math

from warmstart.training.config import T5X, Constant, Cosine, InverseSqrt, Linear, Marian, TrainingConfig


def learning_rate(config: TrainingConfig, step: int, epoch: int) -> float:
    """The absolute rate of update ``step``, counted from 1, whose batch is of ``epoch``, counted from 0.

    What plateaus do to it comes on top. With r the configured rate, w = warmup and p = (step - w) / (steps - w), held
    within [0, 1]:

    * every own schedule: r·step / w while step < w; then
    * ``inverse_sqrt``: r·√(w / step);
    * ``constant``: r;
    * ``linear``: r·(1 - (1 - end_factor)·p);
    * ``cosine``: r·(end_factor + (1 - end_factor)·(1 + cos πp) / 2);
    * ``marian``: see :func:`marian_rate`, with the step - 1 updates before this one. Marian's log line ``Up. n``
      therefore shows the rate of update n + 1, and with a warm-up from zero its first update changes nothing;
    * ``t5x``: see :func:`t5x_rate`; T5X counts from 0, so this is the rate of its step ``step`` - 1.
    """
    rate, schedule = config.learning_rate, config.schedule
    if isinstance(schedule, Marian):
        return marian_rate(schedule, rate, step - 1, epoch + 1)
    if isinstance(schedule, T5X):
        return t5x_rate(schedule, rate, step - 1)
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


def marian_rate(schedule: Marian, rate: float, done: int, epoch: int) -> float:
    """Marian's rate after ``done`` updates, in ``epoch`` (from 1): marian-dev ``src/training/scheduler.h``.

    The product of

    * start + (rate - start)·min(1, done / warmup), with start = ``warmup_start_rate``;
    * √(N / (done - start + N)) once done > start, for N = ``inv_sqrt`` and start = ``inv_sqrt_start`` (N if None);
    * ``decay`` to the number of epochs begun after the first, from ``decay_start`` on; or for ``batches`` to the
      number of updates done among ``decay_start``, ``decay_start`` + ``decay_every``, … A ``decay_start`` of 0 is
      never reached.
    """
    if schedule.warmup:
        start = schedule.warmup_start_rate
        rate = start + (rate - start) * min(1.0, done / schedule.warmup)
    start_decay = schedule.inv_sqrt if schedule.inv_sqrt_start is None else schedule.inv_sqrt_start
    if schedule.inv_sqrt and done > start_decay:
        rate *= math.sqrt(schedule.inv_sqrt / (done - start_decay + schedule.inv_sqrt))
    first, times = schedule.decay_start, 0
    if schedule.decay and first and schedule.decay_strategy == "epoch":
        times = max(0, epoch - max(first, 2) + 1)
    elif schedule.decay and first and done >= first:
        times = (done - first) // schedule.decay_every + 1
    return rate * schedule.decay**times


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
