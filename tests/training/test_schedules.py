"""Schedules against closed forms worked by hand and T5X's function."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from warmstart.training.config import TrainingConfig
from warmstart.training.methods import T5X, Constant, Cosine, InverseSqrt, Linear, Schedule
from warmstart.training.schedule import learning_rate, t5x_rate


def configure(schedule: Schedule, rate: float = 1.0, steps: int = 100) -> TrainingConfig:
    return TrainingConfig(steps=steps, learning_rate=rate, schedule=schedule, evaluate_every=1, checkpoint_every=1)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (InverseSqrt(warmup=4), {1: 0.25, 2: 0.5, 4: 1.0, 16: 0.5, 100: 0.2}),
        (Constant(warmup=5), {1: 0.2, 5: 1.0, 6: 1.0, 100: 1.0}),
        (Constant(), {1: 1.0, 100: 1.0}),
        (Linear(warmup=20), {10: 0.5, 20: 1.0, 60: 0.5, 100: 0.0, 120: 0.0}),
        (Linear(end_factor=0.5), {50: 0.75, 100: 0.5}),
        (Cosine(warmup=20, end_factor=0.2), {10: 0.5, 20: 1.0, 40: 0.6 + 0.4 * math.sqrt(0.5), 60: 0.6, 100: 0.2}),
        (Linear(warmup=100), {100: 1.0, 50: 0.5}),
    ],
)
def test_own_schedules_are_their_closed_forms(schedule: Schedule, expected: dict[int, float]) -> None:
    config = configure(schedule, rate=0.25)
    found = {step: learning_rate(config, step) for step in expected}
    assert found == pytest.approx({step: 0.25 * factor for step, factor in expected.items()})


# --- T5X ------------------------------------------------------------------------------------------------------------

STEPS = (0, 5, 10, 11, 37, 100, 1000, 20_000, 54_321, 1_000_000)


@pytest.mark.parametrize(
    ("factors", "rate", "options", "expected"),
    [
        (
            "constant * linear_warmup * rsqrt_decay",
            0.5,
            {},
            (
                1e-8,
                7.905694e-5,
                1.581139e-4,
                1.739253e-4,
                5.850214e-4,
                1.581139e-3,
                0.01581139,
                3.535534e-3,
                2.145291e-3,
                5e-4,
            ),
        ),
        (
            "constant * rsqrt_decay",
            1.0,
            {"warmup_steps": 10_000},
            (0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 7.0710680e-3, 4.2905812e-3, 1e-3),
        ),
        (
            "linear_decay",
            0.5,
            {"warmup_steps": 10, "decay_factor": 0.01},
            (1e-8, 0.25, 0.5, 0.495, 0.365, 0.05, 1e-8, 1e-8, 1e-8, 1e-8),
        ),
        (
            "constant*rsqrt_normalized_decay",
            0.5,
            {"warmup_steps": 100},
            (0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.15811388, 0.035355341, 0.021452906, 0.005),
        ),
        (
            "constant * linear_warmup * decay_every",
            0.5,
            {"warmup_steps": 10, "steps_per_decay": 20, "decay_factor": 0.7},
            (1e-8, 0.25, 0.5, 0.5, 0.35, 0.084034994, 1e-8, 1e-8, 1e-8, 1e-8),
        ),
        (
            "constant * linear_warmup * cosine_decay",
            0.5,
            {"warmup_steps": 10, "steps_per_cycle": 1000},
            (1e-8, 0.25, 0.5, 0.49999875, 0.49910116, 0.49007341, 1.2336671e-4, 1.2336671e-4, 0.38987005, 1.236051e-4),
        ),
        (
            "constant * linear_warmup",
            0.5,
            {"warmup_steps": 20, "step_offset": 1000},
            (1e-8, 1e-8, 1e-8, 1e-8, 1e-8, 1e-8, 1e-8, 0.5, 0.5, 0.5),
        ),
    ],
)
def test_t5x_factors(factors: str, rate: float, options: dict[str, Any], expected: tuple[float, ...]) -> None:
    """What ``t5x.utils.create_learning_rate_scheduler`` (float32) returned for these arguments and steps."""
    schedule = T5X(factors=factors, **options)
    near = {"abs": 6e-7} if "cosine" in factors else {"rel": 1e-6}  # float32 cancels at the end of a cycle
    assert [t5x_rate(schedule, rate, step) for step in STEPS] == pytest.approx(expected, **near)
    config = configure(schedule, rate=rate)
    assert [learning_rate(config, step + 1) for step in STEPS] == [t5x_rate(schedule, rate, s) for s in STEPS]


@pytest.mark.parametrize(
    ("factors", "text"),
    [
        ("constant * linear_warmpu", "no factor 'linear_warmpu'; did you mean linear_warmup?"),
        ("constant * rsqrt", "did you mean rsqrt_decay?"),
        ("", "there are constant, linear_warmup"),
    ],
)
def test_unknown_factors_are_named_with_what_was_meant(factors: str, text: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(text)):
        T5X(factors=factors)


def test_schedule_is_chosen_by_type_and_unknown_keys_are_refused() -> None:
    adapter: TypeAdapter[Schedule] = TypeAdapter(Schedule)
    assert adapter.validate_python({"type": "cosine", "warmup": 3}) == Cosine(warmup=3)
    with pytest.raises(ValidationError, match="end_factor"):
        adapter.validate_python({"type": "constant", "warmup": 3, "end_factor": 0.1})
    with pytest.raises(ValidationError, match="keep_lsat"):
        TrainingConfig.model_validate(
            {"steps": 1, "learning_rate": 1, "schedule": {"type": "constant"}, "evaluate_every": 1}
            | {"checkpoint_every": 1, "keep_lsat": 1}
        )
