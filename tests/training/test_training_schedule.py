"""Schedules against their closed forms, worked by hand."""

from __future__ import annotations

import math

import pytest
from pydantic import TypeAdapter, ValidationError

from warmstart.training.config import Constant, Cosine, InverseSqrt, Linear, Schedule, TrainingConfig
from warmstart.training.schedule import factor


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
def test_factor_is_the_closed_form(schedule: Schedule, expected: dict[int, float]) -> None:
    assert {step: factor(schedule, step, 100) for step in expected} == pytest.approx(expected)


def test_inverse_sqrt_is_marians_formula() -> None:
    for step in range(1, 3000):  # --lr-warmup 300 --lr-decay-inv-sqrt 300
        marian = min(1.0, step / 300) * math.sqrt(300 / max(step, 300))
        assert factor(InverseSqrt(warmup=300), step, 3000) == pytest.approx(marian, rel=1e-12)


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
