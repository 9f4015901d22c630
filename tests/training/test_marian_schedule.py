"""Marian's schedule against its logs, closed forms, and its scheduler's rules written down a second time."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from warmstart.data.plan import Position
from warmstart.errors import ConfigError
from warmstart.training.config import TrainingConfig
from warmstart.training.marian import MarianClock, MarianState, begun, of_options, of_progress
from warmstart.training.methods import InverseSqrt, Marian, OfSource
from warmstart.training.schedule import learning_rate
from warmstart.training.standing import Standing
from warmstart.training.state import State


def configure(schedule: Any, rate: float = 1.0) -> TrainingConfig:
    return TrainingConfig(steps=100, learning_rate=rate, schedule=schedule, evaluate_every=1, checkpoint_every=1)


def standing(schedule: Marian, rate: float = 1.0, step: int = 0) -> Standing:
    return Standing(configure(schedule, rate), State(step, Position(), 1))


# --- closed forms and logs ------------------------------------------------------------------------------------------


def test_inverse_sqrt_runs_one_update_ahead_of_marian() -> None:
    own = configure(InverseSqrt(warmup=300), rate=0.002)
    theirs = standing(Marian(warmup=300, inv_sqrt=300), rate=0.002)
    assert theirs.rate(1) == 0.0
    for step in range(1, 3000):
        marian = 0.002 * min(1.0, step / 300) * math.sqrt(300 / max(step, 300))
        assert learning_rate(own, step) == pytest.approx(marian, rel=1e-12)
        assert theirs.rate(step + 1) == pytest.approx(marian, rel=1e-12)


def test_the_rates_in_marians_logs(fixtures: Path) -> None:
    """``L.r.`` of the line ``Up. n`` is the rate of update n + 1."""
    run = standing(Marian(warmup=500, inv_sqrt=500), rate=0.002)
    line = re.compile(r"Up\. (\d+) .* L\.r\. (\S+)")
    seen = 0
    for name in ("i-a-continue", "i-a3-continue-from-2550", "i-c-no-progress-file", "ii-a-same-vocab-other-corpus"):
        text = (fixtures / f"fixtures/marian-continue/{name}.log").read_text()
        for step, logged in line.findall(text):
            assert f"{run.rate(int(step) + 1):.4e}" == logged
            seen += 1
    assert seen > 30


def test_a_warm_up_from_a_rate() -> None:
    """A run of Marian, ``--learn-rate 0.002 --lr-warmup 10 --lr-warmup-start-rate 0.0005``: its first two updates
    moved the weights by these rates, and its log showed those of the next two."""
    run = standing(Marian(warmup=10, warmup_start_rate=0.0005), rate=0.002)
    assert [run.rate(step) for step in (1, 2, 3)] == pytest.approx([5e-4, 6.5e-4, 8e-4])
    assert run.rate(11) == run.rate(99) == 0.002


@pytest.mark.parametrize(
    ("options", "done", "expected"),
    [
        ({"inv_sqrt": 100}, 100, 1.0),
        ({"inv_sqrt": 100}, 400, 0.5),
        ({"inv_sqrt": 100, "inv_sqrt_start": 50}, 50, 1.0),
        ({"inv_sqrt": 100, "inv_sqrt_start": 50}, 350, 0.5),
        ({"inv_sqrt": 100, "inv_sqrt_start": 700}, 700, 1.0),
        ({"inv_sqrt": 100, "inv_sqrt_start": 700}, 1000, 0.5),
    ],
)
def test_the_inverse_square_root_of_one_and_two_numbers(options: dict[str, int], done: int, expected: float) -> None:
    assert standing(Marian(**options)).rate(done + 1) == pytest.approx(expected)


def test_a_repeated_warm_up_begins_after_one_more_update() -> None:
    """Decay at update 6, warm-up over 4: Marian computes the rate before it restarts the warm-up."""
    schedule = Marian(
        warmup=4, decay=0.5, decay_strategy="batches", decay_start=6, decay_every=100, decay_repeat_warmup=True
    )
    run, rates = standing(schedule), []
    for step in range(1, 13):
        rates.append(run.rate(step))
        run.after_update(step)
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 0.5, 0.125, 0.25, 0.375, 0.5, 0.5])


# --- Marian's rules, a second time ----------------------------------------------------------------------------------


class Rules:
    """``scheduler.h`` and ``training_state.h`` line by line, for parameters that count updates."""

    def __init__(self, options: dict[str, Any], rate: float) -> None:
        self.o, self.learn_rate = options, rate
        self.epochs, self.batches, self.stalled, self.max_stalled = 1, 0, 0, 0
        self.factor, self.warmup_start, self.first, self.resets = 1.0, 0, True, 0
        self.compute()

    def compute(self) -> None:
        o, base, warm = self.o, self.learn_rate, 1.0
        if o["lr-warmup"]:
            warm = min(1.0, (self.batches - self.warmup_start) / o["lr-warmup"])
        base = o["lr-warmup-start-rate"] + (base - o["lr-warmup-start-rate"]) * warm
        n, start = o["lr-decay-inv-sqrt"]
        if n and self.batches > start:
            base *= math.sqrt(n / (self.batches - start + n))
        self.eta = base * self.factor

    def decay(self) -> None:
        self.factor *= self.o["lr-decay"]
        self.compute()
        self.resets += self.o["lr-decay-reset-optimizer"]
        if self.o["lr-decay-repeat-warmup"]:
            self.warmup_start = self.batches

    def update(self) -> None:
        self.batches += 1
        self.compute()
        o, start = self.o, self.o["lr-decay-start"][0]
        due = start > 0 and self.batches >= start and (self.batches - start) % o["lr-decay-freq"] == 0
        if o["lr-decay"] and o["lr-decay-strategy"] == "batches" and due:
            self.decay()
        if self.first and o["lr-warmup-at-reload"]:
            self.warmup_start = self.batches
        if o["lr-warmup-cycle"] and self.batches // o["lr-warmup"] != (self.batches - 1) // o["lr-warmup"]:
            self.warmup_start = self.batches
        self.first = False

    def epoch(self) -> None:
        self.epochs += 1
        self.compute()
        strategy, start = self.o["lr-decay-strategy"], self.o["lr-decay-start"]
        if self.o["lr-decay"]:
            decay = False
            if strategy in ("epoch", "epoch+batches", "epoch+stalled"):
                decay = start[0] > 0 and self.epochs >= start[0]
            if strategy == "epoch+batches" and start[1] and self.batches >= start[1]:
                decay = True
            if strategy == "epoch+stalled" and start[1] and self.max_stalled >= start[1]:
                decay = True
            if decay:
                self.decay()

    def validate(self, stalled: int) -> None:
        if stalled > self.stalled_before(stalled):
            self.stalled = stalled
            if stalled > self.max_stalled:
                self.max_stalled += 1
            self.compute()
            start = self.o["lr-decay-start"][0]
            if self.o["lr-decay"] and self.o["lr-decay-strategy"] == "stalled" and start and stalled % start == 0:
                self.decay()

    def stalled_before(self, stalled: int) -> int:
        return stalled - 1 if stalled else 0


STRATEGIES = ("epoch", "batches", "stalled", "epoch+batches", "epoch+stalled")


def random_options(chance: random.Random) -> dict[str, Any]:
    strategy, inverse = chance.choice(STRATEGIES), chance.choice([0, 5, 30])
    return {
        "lr-warmup": (warmup := chance.choice([0, 3, 8])),
        "lr-warmup-start-rate": chance.choice([0.0, 0.2]) if warmup else 0.0,
        "lr-warmup-cycle": bool(warmup) and chance.random() < 0.2,
        "lr-warmup-at-reload": bool(warmup) and chance.random() < 0.3,
        "lr-decay": chance.choice([0, 0.5, 0.9]),
        "lr-decay-strategy": strategy,
        "lr-decay-start": [chance.choice([0, 1, 2, 4]), chance.choice([0, 1, 3, 17])],
        "lr-decay-freq": chance.choice([1, 4, 50]),
        "lr-decay-repeat-warmup": bool(warmup) and chance.random() < 0.5,
        "lr-decay-reset-optimizer": chance.random() < 0.5,
        "lr-decay-inv-sqrt": [inverse, chance.choice([inverse, 12])],
    }


@pytest.mark.parametrize("seed", range(60))
def test_every_update_of_random_options_has_marians_rate(seed: int) -> None:
    """Updates, evaluations and epochs in Marian's order, also where the state is saved and read back between them."""
    chance = random.Random(seed)
    options = random_options(chance)
    schedule = of_options(options, OfSource())
    config, rules = configure(schedule, 0.5), Rules(options, 0.5)
    run, resets, position = Standing(config, State(0, Position(), 1)), 0, Position()
    stalled, best = 0, math.inf
    for step in range(1, 61):
        run.before_update(step, position.epoch)
        resets += run.take_reset()
        assert run.rate(step) == pytest.approx(rules.eta, abs=1e-12), step
        rules.update()
        run.after_update(step)
        if schedule.stalls and step % 3 == 0:
            value = chance.random()
            stalled, best = (0, value) if value < best else (stalled + 1, best)
            rules.validate(stalled)
            run.observe(step, {"validation/loss": value})
        if step % 7 == 0:
            rules.epoch()
            position = Position(position.epoch + 1)
        resets += run.take_reset()
        if chance.random() < 0.3:
            run = Standing(config, State(step, position, 1, **run.fields()))
    run.before_update(61, position.epoch)
    assert resets + run.take_reset() == rules.resets


@pytest.mark.parametrize("start", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("strategy", ["epoch", "batches"])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_run_without_a_state_begins_as_if_it_had_had_one(start: int, strategy: Any, decay: float) -> None:
    """Checkpoints of earlier versions, and runs that get this schedule in their middle."""
    schedule = Marian(decay=decay, decay_strategy=strategy, decay_start=start, decay_every=4)
    clock = MarianClock(schedule, MarianState())
    for done in range(1, 41):
        clock.after_update(done)
        clock.enter_epoch(done // 5, done)
        assert begun(schedule, done, done // 5).factor == pytest.approx(clock.state.factor)
    assert (clock.state.factor < 0.3) == (decay > 0 and start > 0)


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"decay": 0.5, "decay_strategy": "epoch+batches"}, "a number for each"),
        ({"decay": 0.5, "decay_start": [1, 2]}, "a number for each"),
        ({"decay_reset_optimizer": True}, "changes nothing without decay"),
        ({"decay": 0.5, "decay_repeat_warmup": True}, "changes nothing without warmup"),
        ({"warmup_at_reload": True}, "changes nothing without warmup"),
        ({"decay": 0.5, "mode": "max"}, "without a decay by stalled"),
    ],
)
def test_keys_that_change_nothing_are_refused(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Marian.model_validate(keys)


# --- beside a Marian model ------------------------------------------------------------------------------------------


def test_the_options_and_progress_of_a_real_model(fixtures: Path) -> None:
    folder = fixtures / "fixtures/marian-en-de-spm"
    options = yaml.safe_load((folder / "model.npz.yml").read_text())
    progress = yaml.safe_load((folder / "model.npz.progress.yml").read_text())
    schedule, state = of_options(options, OfSource()), of_progress(progress)
    assert schedule == Marian(warmup=500, inv_sqrt=500)
    assert state == MarianState(epoch=8)
    run = Standing(configure(schedule, 0.0008), State(3500, Position(), 1, schedule=state.to_dict()))
    assert run.rate(progress["batches"] + 1) == pytest.approx(progress["eta"], rel=1e-6)


def test_a_continued_schedule_goes_on_from_marians_factor_and_epoch() -> None:
    options = {"lr-decay": 0.5, "lr-decay-strategy": "epoch", "lr-decay-start": [5], "lr-warmup": "100u"}
    state = of_progress({"epochs": 6, "eta-factor": 0.25, "warmup-start": "40u", "stalled-max": 2})
    clock = MarianClock(of_options(options, OfSource()), replace(state, data_epoch=0))
    assert clock.rate(1.0, 90) == pytest.approx(0.25 * 0.5)
    clock.enter_epoch(1, 90)
    assert (clock.state.epoch, clock.state.factor) == (7, 0.125)


def test_what_the_options_say_and_we_lack_is_named_together() -> None:
    options = {"lr-warmup": "1Gt", "lr-decay-inv-sqrt": ["2e"], "lr-decay": 0.5, "lr-decay-strategy": "weekly"}
    stalled = {"lr-decay": 0.5, "lr-decay-strategy": "stalled", "lr-decay-start": [3], "early-stopping-on": "any"}
    with pytest.raises(ConfigError, match="early-stopping-on"):
        of_options(stalled, OfSource())
    with pytest.raises(ConfigError) as caught:
        of_options(options, OfSource())
    text = str(caught.value)
    assert all(part in text for part in ("lr-warmup", "lr-decay-inv-sqrt", "decay_strategy", "1Gt"))
    with pytest.raises(ConfigError, match="warmup-start is not counted"):
        of_progress({"warmup-start": "300t"})
    assert of_options({"lr-warmup": "16Ku", "lr-decay-inv-sqrt": ["32,000"]}, OfSource()) == Marian(
        warmup=16_000, inv_sqrt=32_000
    )
