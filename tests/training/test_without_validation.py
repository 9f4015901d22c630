"""A training without evaluations, and one whose evaluations decide nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from test_training_loop import arrays, evaluate, go, timeless

from warmstart.training.config import TrainingConfig
from warmstart.training.state import best_checkpoint, latest, read_state


def never(model: Any, step: int) -> Any:
    raise AssertionError("this training evaluates nothing")


def test_it_trains_as_if_it_were_evaluated(tmp_path: Path, build, stream, config) -> None:  # type: ignore[no-untyped-def]
    go(tmp_path / "with", build, stream(), config)
    without = config.model_copy(update={"evaluate_every": None})
    _, result = go(tmp_path / "without", build, stream(), without, evaluate=never)
    assert (result.steps, result.best_step, result.best_metrics) == (6, None, {})
    last = latest(tmp_path / "without")
    assert last is not None
    assert arrays(last) == arrays(tmp_path / "with" / last.relative_to(tmp_path / "without"))
    assert best_checkpoint(tmp_path / "without") is None
    assert [record["kind"] for record in timeless(tmp_path / "without")] == ["train"] * 3


def test_it_goes_on_exactly(tmp_path: Path, build, stream, config) -> None:  # type: ignore[no-untyped-def]
    without = config.model_copy(update={"evaluate_every": None})
    go(tmp_path / "whole", build, stream(), without, evaluate=never)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", build, stream(fails_at=8), without, evaluate=never)
    go(tmp_path / "cut", build, stream(), without, evaluate=never)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")


def test_no_evaluation_before_the_first_update_of_a_run_that_is_gone_on_with(
    tmp_path: Path, build, stream, config
) -> None:  # type: ignore[no-untyped-def]
    later = config.model_copy(update={"evaluate_first": False})
    go(tmp_path / "whole", build, stream(), later)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", build, stream(fails_at=1), later)
    go(tmp_path / "cut", build, stream(), later)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")


def test_evaluations_may_decide_nothing(tmp_path: Path, build, stream, config) -> None:  # type: ignore[no-untyped-def]
    _, result = go(tmp_path, build, stream(), config.model_copy(update={"best_metric": None}), evaluate=evaluate)
    newest = latest(tmp_path)
    assert newest is not None
    assert (result.best_step, read_state(newest).best) == (None, ())
    assert any(record["kind"] == "validation" for record in timeless(tmp_path))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"evaluate_every": None, "samples": 3, "early_stopping": {"patience": 2}}, "samples, early_stopping changes"),
        ({"evaluate_every": 2, "best_metric": None, "plateau": {"patience": 1, "reload_best": True}}, "best_metric"),
        ({"evaluate_every": 2, "best_metric": None, "keep_best": 3}, "keep_best changes nothing without a best_metric"),
        (
            {"evaluate_every": None, "schedule": {"type": "marian", "decay": 0.5, "decay_strategy": "stalled"}},
            "decay_strategy changes nothing",
        ),
        (
            {"evaluate_every": 2, "groups": [{"stages": ["encoder"], "freeze": {"plateaus": 1}}]},
            "groups.0.freeze.plateaus is never reached",
        ),
        (
            {"evaluate_every": 2, "groups": [{"stages": ["encoder"], "freeze": True, "learning_rate": 0.1}]},
            "changes nothing where freeze is true",
        ),
        ({"evaluate_every": 2, "nonfinite": {"limit": 3}}, "limit changes nothing where the action is stop"),
        (
            {"evaluate_every": 2, "schedule": {"type": "t5x", "steps_per_cycle": 9}},
            "steps_per_cycle changes nothing without cosine_decay",
        ),
    ],
)
def test_keys_that_would_change_nothing_are_refused(keys: dict[str, Any], said: str) -> None:
    base = {"steps": 4, "learning_rate": 0.1, "schedule": {"type": "constant"}, "checkpoint_every": 2}
    with pytest.raises(ValidationError, match=said):
        TrainingConfig.model_validate(base | keys)
