"""Runs that use what the plain kill tests do not (going back, teachers, adapters, releases, watches) end bit-equal,
too, when they are killed at any moment.

``WARMSTART_KILLS`` sets the number of killed runs: one for each set of features and 50.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from killing import Server, contents, write_task

TRIALS = max(1, int(os.environ.get("WARMSTART_KILLS", "50")) // 50)
POISON = 5  # about every fifth batch is not finite
REWIND, SKIP = ({"training.nonfinite": {"action": action, "limit": 60}} for action in ("rewind", "skip"))
TEACHERS = ["teacher-1/model", "teacher-2/model"]
PLATEAU = {"metric": "validation/loss", "patience": 1, "min_change": 0.3, "factor": 0.7, "reload_best": True}
HALF_LORA = {"modules": ["**.query", "**.value"], "rank": 2}

Was = Callable[[Mapping[str, Any]], bool]  # whether a state says that the feature did something
FEATURES: dict[str, tuple[dict[str, Any], Was]] = {
    "one teacher, going back at every other checkpoint": (
        {**REWIND, "training.distillation": {"teachers": TEACHERS[:1], "weight": 0.5}, "training.keep_last": 1},
        lambda state: state["order"] > 1,
    ),
    "two teachers of adapters, biases released": (
        {
            **SKIP,
            "training.distillation": {"teachers": TEACHERS, "temperature": 2.0},
            "training.lora": HALF_LORA,
            "training.groups": [{"parameters": ["**.bias"], "learning_rate": 0.1, "freeze": {"step": 3}}],
        },
        lambda state: len(set(state["optimizer_steps"].values())) > 1,
    ),
    "translations of two teachers": (
        {**SKIP, "training.distillation": {"teachers": TEACHERS, "level": "sequence", "beam_size": 2}},
        lambda state: state["skipped"] > 1,
    ),
    "releases at plateaus, back to the best, going back": (
        {
            **REWIND,
            "training.steps": 20,
            "training.plateau": PLATEAU,
            "training.groups": [{"stages": ["encoder"], "freeze": {"plateaus": 1}}],
            "training.keep_best": 2,
        },
        lambda state: state["plateau"]["plateaus"] > 1 and state["order"] > 1,
    ),
    "early stopping by a score, Adafactor": (
        {
            **REWIND,
            "training.steps": 60,
            "training.optimizer": {"type": "adafactor"},
            "training.early_stopping": {"metric": "validation/loss", "patience": 4, "min_change": 0.3},
            "training.plateau": {**PLATEAU, "patience": 2},
            "training.best_metric": "validation/chrf",
            "training.best_mode": "max",
            "training.keep_best": 2,
        },
        lambda state: state["step"] < 60 and state["plateau"]["plateaus"] > 0,
    ),
    "Marian's schedule that resets the optimizer": (
        {
            **SKIP,
            "training.steps": 18,
            "training.schedule": {
                **{"type": "marian", "warmup": 3, "decay": 0.5, "decay_strategy": "stalled", "min_change": 0.3},
                **{"decay_start": 1, "decay_repeat_warmup": True, "decay_reset_optimizer": True},
            },
        },
        lambda state: state["schedule"]["factor"] < 1.0,
    ),
    "checkpoints by the clock, going back, batches put together": (
        {**REWIND, "training.checkpoint_minutes": 1e-9, "training.checkpoint_every": 50, "training.accumulation": 2},
        lambda state: state["order"] > 1,
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two teachers."""
    folder = tmp_path_factory.mktemp("features")
    write_task(folder)
    server = Server(folder)
    for number in (1, 2):
        assert server.train(f"teacher-{number}", f"training.steps={10 * number}") == 0, (folder / "log").read_text()
    server.stop()
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    server = Server(place, POISON)
    yield server
    server.stop()


@pytest.mark.parametrize("name", FEATURES)
def test_killed_at_random_moments(name: str, server: Server, place: Path) -> None:
    features, was = FEATURES[name]
    overrides = [f"{key}={json.dumps(value)}" for key, value in features.items()]
    began = time.perf_counter()
    assert server.train(f"whole {name}", *overrides, operation=-1) == 0, (place / "log").read_text()[-2000:]
    seconds, operations = time.perf_counter() - began, int((place / "operations").read_text())
    expected = contents(place / f"whole {name}")
    assert was(json.loads(next(v for k, v in reversed(expected.items()) if k.endswith("state.json"))))
    chance = random.Random(name)
    for trial in range(TRIALS):
        run = f"cut {trial} {name}"
        for kill in range(4):
            if kill == 3:  # enough; let it end
                status = server.train(run, *overrides)
            elif chance.random() < 0.3:
                pid = server.start(run, *overrides)
                time.sleep(chance.random() * seconds)
                status = server.kill(pid, signal.SIGKILL)
            else:
                status = server.train(run, *overrides, operation=chance.randint(1, operations))
            assert status in (0, -signal.SIGKILL), (place / "log").read_text()[-2000:]
            if status == 0:
                break
        assert contents(place / run) == expected, (run, kill)
