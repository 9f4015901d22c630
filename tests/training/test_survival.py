"""What a training does about trouble: numbers that are not finite, full disks, signals, plateaus."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from warmstart.errors import Interrupted, StorageError, TrainingError
from warmstart.formats.detect import open_checkpoint
from warmstart.training import state as checkpoints
from warmstart.training.config import Nonfinite, Patience, Plateau
from warmstart.training.learner import Learner
from warmstart.training.loop import train
from warmstart.training.metrics import read_metrics
from warmstart.training.objective import CrossEntropy
from warmstart.training.terms import Loss, Measured


def measure(values: dict[int, float] | None = None) -> Any:
    def evaluate(model: torch.nn.Module, step: int) -> Measured:
        return Measured({"validation/loss": (values or {}).get(step, 1.0)})

    return evaluate


def go(run: Path, build: Any, stream: Any, config: Any, **options: Any) -> tuple[Learner, Any]:
    learner = Learner(build(), config, 5, options.pop("objective", None))
    return learner, train(run, learner, stream, **({"seed": 5, "evaluate": measure(), "progress": False} | options))


def weights(run: Path, step: int) -> dict[str, bytes]:
    opened = open_checkpoint(checkpoints.checkpoint_path(run, step) / "model.safetensors")
    return {name: opened.read(name).tobytes() for name in opened.entries}


class Poisoned(CrossEntropy):
    """The loss of batch number ``bad`` (by its lengths, which the stream makes from its number) is not a number."""

    def __init__(self, config: Any, bad: Any) -> None:
        super().__init__(config)
        self.bad = bad

    def __call__(self, model: torch.nn.Module, batch: Any) -> Loss:
        loss = super().__call__(model, batch)
        if (batch.source == self.bad.source).all() if batch.source.shape == self.bad.source.shape else False:
            return Loss(loss.loss * math.nan, loss.nll, loss.units)
        return loss


@pytest.fixture
def bad(stream: Any) -> Any:
    """The batch that update 5 reads first: number 8, with two for each update."""
    from warmstart.data.plan import Position

    return next(stream().iterate(Position(0, 0, 8)))[1]


def test_not_finite_stops_and_writes_the_batch_down(tmp_path: Path, build, stream, config, bad) -> None:  # type: ignore[no-untyped-def]
    objective = Poisoned(config, bad)
    with pytest.raises(TrainingError, match="the loss is not finite") as caught:
        go(tmp_path, build, stream(), config, objective=objective, describe=lambda b: b.source.tolist())
    assert "step 5" in str(caught.value.where)
    written = json.loads((tmp_path / "nonfinite/step-00000005.json").read_text())
    assert written["position"] == {"epoch": 0, "window": 0, "k": 8}
    assert written["batches"][0] == bad.source.tolist()
    assert written["loss"] == "nan"
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoints/step-00000003"


def test_not_finite_updates_are_left_out_and_counted(tmp_path: Path, build, stream, config, bad) -> None:  # type: ignore[no-untyped-def]
    rule = {"nonfinite": Nonfinite(action="skip", limit=1), "checkpoint_every": 1, "keep_last": 9}
    skipping = config.model_copy(update=rule)
    _, result = go(tmp_path / "run", build, stream(), skipping, objective=Poisoned(config, bad))
    assert result.steps == 6
    assert weights(tmp_path / "run", 4) == weights(tmp_path / "run", 5) != weights(tmp_path / "run", 6)
    assert checkpoints.read_state(checkpoints.checkpoint_path(tmp_path / "run", 6)).skipped == 1
    assert read_metrics(tmp_path / "run")[-2]["train/skipped"] == 1

    class Always(CrossEntropy):
        def __call__(self, model: torch.nn.Module, batch: Any) -> Loss:
            loss = super().__call__(model, batch)
            return Loss(loss.loss * math.inf, loss.nll, loss.units)

    with pytest.raises(TrainingError, match="the loss is not finite") as caught:
        go(tmp_path / "always", build, stream(), skipping, objective=Always(config))
    assert "step 2" in str(caught.value.where)  # the first one was left out: its limit


def test_not_finite_goes_back_and_takes_another_order(tmp_path: Path, build, stream, config, bad) -> None:  # type: ignore[no-untyped-def]
    rewinding = config.model_copy(update={"nonfinite": Nonfinite(action="rewind")})
    _, result = go(tmp_path / "run", build, stream(), rewinding, objective=Poisoned(config, bad))
    assert result.steps == 6
    state = checkpoints.read_state(checkpoints.checkpoint_path(tmp_path / "run", 6))
    assert (state.order, state.skipped) == (1, 0)
    steps = [(r["kind"], r["step"]) for r in read_metrics(tmp_path / "run")]
    assert len(set(steps)) == len(steps)
    _, plain = go(tmp_path / "plain", build, stream(), config)
    losses, others = ([r["train/loss"] for r in x.history if r["kind"] == "train"] for x in (result, plain))
    assert losses[0] == others[0]  # step 2; it went back from 5 to 3
    assert losses[1] != others[1]


def test_going_back_makes_up_for_an_evaluation_that_a_signal_kept_away(  # type: ignore[no-untyped-def]
    tmp_path: Path, build, stream, config, bad
) -> None:
    """It stops before the evaluation of step 4; the batch of step 5 then sends it back to that checkpoint."""

    def evaluate(model: torch.nn.Module, step: int) -> Measured:
        if step == 4 and not stopped:
            stopped.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return Measured({"validation/loss": 1.0 / (1 + step)})

    stopped: list[int] = []
    rewinding = config.model_copy(update={"nonfinite": Nonfinite(action="rewind")})
    with pytest.raises(Interrupted):
        go(tmp_path, build, stream(), rewinding, evaluate=evaluate)
    _, result = go(tmp_path, build, stream(), rewinding, evaluate=evaluate, objective=Poisoned(config, bad))
    assert [r["step"] for r in result.history if r["kind"] == "validation"] == [0, 2, 4, 6]
    state = checkpoints.read_state(checkpoints.latest(tmp_path))
    assert (state.order, state.exact) == (1, False)  # without the signal it would have gone back to another one


def test_numbers_between_two_records_are_those_of_the_updates_that_were_made(  # type: ignore[no-untyped-def]
    tmp_path: Path, build, stream, config, bad
) -> None:
    """Update 5, which is left out, has a record of its own; it is the same after going on at step 4."""

    def steps(count: int) -> Any:
        rule = {"nonfinite": Nonfinite(action="skip"), "log_every": 1, "checkpoint_every": 1, "steps": count}
        return config.model_copy(update=rule)

    _, whole = go(tmp_path / "whole", build, stream(), steps(6), objective=Poisoned(config, bad))
    go(tmp_path / "cut", build, stream(), steps(4), objective=Poisoned(config, bad))
    _, cut = go(tmp_path / "cut", build, stream(), steps(6), objective=Poisoned(config, bad))
    records = [[r | {"time": None} for r in x.history if r["kind"] == "train"] for x in (whole, cut)]
    assert records[0] == records[1]
    fifth = records[0][4]
    assert (fifth["step"], fifth["train/tokens"], fifth["train/skipped"]) == (5, 0, 1)
    assert fifth["train/loss"] is fifth["train/gradient_norm"] is None


def test_going_back_does_not_forget_another_environment(tmp_path: Path, build, stream, config, bad) -> None:  # type: ignore[no-untyped-def]
    first = config.model_copy(update={"steps": 4, "checkpoint_every": 4, "evaluate_every": 4})
    go(tmp_path, build, stream(), first)
    newest = checkpoints.latest(tmp_path)
    state = checkpoints.read_state(newest)
    checkpoints.write_state(newest, replace(state, environment={**state.environment, "torch": "0"}))
    rule = {"nonfinite": Nonfinite(action="rewind"), "checkpoint_every": 4, "evaluate_every": 4}
    go(tmp_path, build, stream(), config.model_copy(update=rule), objective=Poisoned(config, bad))
    after = checkpoints.read_state(checkpoints.latest(tmp_path))
    assert (after.step, after.order, after.exact) == (6, 1, False)
    assert after.environment == {**state.environment, "torch": torch.__version__}


def test_really_the_best_are_kept_and_pinned_ones_too(tmp_path: Path, build, stream, config) -> None:  # type: ignore[no-untyped-def]
    """The order in which EIR loses one of the true top three."""
    scores = dict(zip(range(1, 7), (0.5, 0.6, 0.55, 0.58, 0.7, 0.65), strict=True))
    best = {"steps": 6, "evaluate_every": 1, "evaluate_first": False, "checkpoint_every": 50, "keep_last": 1}
    best |= {"keep_best": 3, "best_mode": "max"}

    def evaluate(model: torch.nn.Module, step: int) -> Measured:
        if step == 1:
            while checkpoints.latest(tmp_path) is None:  # it is written behind the training's back
                time.sleep(0.01)
            (tmp_path / "checkpoints/step-00000000/PINNED").touch()
        return Measured({"validation/loss": scores[step]})

    _, result = go(tmp_path, build, stream(), config.model_copy(update=best), evaluate=evaluate)
    assert result.best_step == 5
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [f"step-{step:08d}" for step in (0, 2, 5, 6)]


def test_early_stopping_ends_the_run_and_more_patience_goes_on(tmp_path: Path, build, stream, config) -> None:  # type: ignore[no-untyped-def]
    long = config.model_copy(update={"steps": 20, "early_stopping": Patience(patience=2, min_change=0.1)})
    values = {0: 3.0, 2: 2.0, 4: 1.95, 6: 1.95, 8: 1.0}
    _, result = go(tmp_path / "run", build, stream(), long, evaluate=measure(values))
    assert (result.steps, result.best_step) == (6, 4)
    assert "has not improved for 2 evaluations" in str(result.stopped)
    _, again = go(tmp_path / "run", build, stream(), long, evaluate=measure(values))
    assert (again.steps, again.history) == (6, result.history)
    patient = long.model_copy(update={"steps": 8, "early_stopping": Patience(patience=3, min_change=0.1)})
    _, on = go(tmp_path / "run", build, stream(), patient, evaluate=measure(values))
    _, whole = go(tmp_path / "whole", build, stream(), patient, evaluate=measure(values))
    assert on.steps == whole.steps == 8
    assert weights(tmp_path / "run", 8) == weights(tmp_path / "whole", 8)


def test_a_plateau_lowers_the_rate_and_goes_back_to_the_best(tmp_path: Path, build, stream, config) -> None:  # type: ignore[no-untyped-def]
    values = {0: 3.0, 2: 1.0, 4: 2.0, 6: 2.0, 8: 2.0}
    rule = {"steps": 8, "checkpoint_every": 1, "keep_last": 20, "log_every": 1}
    plain = config.model_copy(update=rule)
    lower = plain.model_copy(update={"plateau": Plateau(patience=2, factor=0.1, reload_best=True)})
    go(tmp_path / "plain", build, stream(), plain, evaluate=measure(values))
    _, result = go(tmp_path / "run", build, stream(), lower, evaluate=measure(values))
    rates = {r["step"]: r["train/learning_rate"] for r in result.history if r["kind"] == "train"}
    usual = {r["step"]: r["train/learning_rate"] for r in read_metrics(tmp_path / "plain") if r["kind"] == "train"}
    assert rates[6] == usual[6]
    assert rates[7] == pytest.approx(0.1 * usual[7])
    assert weights(tmp_path / "run", 5) == weights(tmp_path / "plain", 5)
    assert weights(tmp_path / "run", 6) == weights(tmp_path / "run", 2)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", build, stream(fails_at=13), lower, evaluate=measure(values))
    go(tmp_path / "cut", build, stream(), lower, evaluate=measure(values))
    assert weights(tmp_path / "cut", 8) == weights(tmp_path / "run", 8)
    go(tmp_path / "longer", build, stream(), lower.model_copy(update={"steps": 6}), evaluate=measure(values))
    go(tmp_path / "longer", build, stream(), lower, evaluate=measure(values))  # from the plateau that it ended on
    assert weights(tmp_path / "longer", 8) == weights(tmp_path / "run", 8)


def test_a_signal_before_the_evaluation_that_goes_back_to_the_best_and_ends_the_run(  # type: ignore[no-untyped-def]
    tmp_path: Path, build, stream, config
) -> None:
    """The checkpoint that the signal left holds the weights of before: the end takes its place, also when pinned."""
    stopped: list[int] = []

    def evaluate(model: torch.nn.Module, step: int) -> Measured:
        if step == 4 and run.name == "cut" and not stopped:
            stopped.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return Measured({"validation/loss": 1.0 if step == 2 else 2.0})

    rule = {"steps": 8, "plateau": Plateau(patience=1, reload_best=True)}
    impatient, patient = (config.model_copy(update={**rule, "early_stopping": Patience(patience=k)}) for k in (1, 9))
    run = tmp_path / "cut"
    with pytest.raises(Interrupted):
        go(run, build, stream(), impatient, evaluate=evaluate)
    assert weights(run, 4) != weights(run, 2)
    (checkpoints.checkpoint_path(run, 4) / checkpoints.PINNED).touch()
    for run in (tmp_path / "cut", tmp_path / "whole"):
        _, result = go(run, build, stream(), impatient, evaluate=evaluate)
        assert result.steps == 4
        assert weights(run, 4) == weights(run, 2)
        go(run, build, stream(), patient, evaluate=evaluate)
    assert weights(tmp_path / "cut", 8) == weights(tmp_path / "whole", 8)
    assert (checkpoints.checkpoint_path(tmp_path / "cut", 4) / checkpoints.PINNED).exists()


def test_a_full_disk_stops_with_an_error_and_loses_nothing(tmp_path: Path, build, stream, config, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    usage = shutil.disk_usage(tmp_path)
    calls = []

    def full(path: Path) -> Any:
        calls.append(path)
        return usage._replace(free=2**20 + 100) if len(calls) > 2 else usage

    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(StorageError, match="not enough free space"):
        go(tmp_path / "run", build, stream(), config)
    monkeypatch.undo()
    assert checkpoints.latest(tmp_path / "run") == tmp_path / "run/checkpoints/step-00000003"
    go(tmp_path / "run", build, stream(), config)
    go(tmp_path / "whole", build, stream(), config)
    assert weights(tmp_path / "run", 6) == weights(tmp_path / "whole", 6)


@pytest.fixture
def hangup() -> Iterator[None]:
    """SIGHUP is not ignored, also where the tests run under ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_under_nohup_a_closed_terminal_changes_nothing(tmp_path: Path, build, stream, config, hangup) -> None:  # type: ignore[no-untyped-def]
    def evaluate(model: torch.nn.Module, step: int) -> Measured:
        os.kill(os.getpid(), signal.SIGHUP)
        return Measured({"validation/loss": 1.0})

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _, result = go(tmp_path, build, stream(), config, evaluate=evaluate)
    assert result.steps == 6


@pytest.mark.parametrize("place", ["update", "evaluation"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_stops(  # type: ignore[no-untyped-def]
    tmp_path: Path, build, stream, config, hangup, place: str, number: signal.Signals, status: int
) -> None:
    measured: list[int] = []

    def evaluate(model: torch.nn.Module, step: int) -> Measured:
        if place == "evaluation" and step == 4 and measured[-1:] == [2]:
            measured.append(-4)
            os.kill(os.getpid(), number)
        measured.append(step)
        return Measured({"validation/loss": float(step)})

    class Asking(CrossEntropy):
        def __call__(self, model: torch.nn.Module, batch: Any) -> Loss:
            if place == "update" and measured == [0, 2, 4] and self.calls == 8:
                os.kill(os.getpid(), number)
            self.calls += 1
            return super().__call__(model, batch)

        calls = 0

    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        go(tmp_path / "run", build, stream(), config, evaluate=evaluate, objective=Asking(config))
    assert caught.value.status == status
    assert signal.getsignal(number) == before
    stopped = 4 if place == "evaluation" else 5
    assert checkpoints.latest(tmp_path / "run") == checkpoints.checkpoint_path(tmp_path / "run", stopped)
    go(tmp_path / "run", build, stream(), config, evaluate=evaluate)
    assert [step for step in measured if step >= 0] == [0, 2, 4, 6]
    go(tmp_path / "whole", build, stream(), config, evaluate=lambda m, s: Measured({"validation/loss": float(s)}))
    assert weights(tmp_path / "run", 6) == weights(tmp_path / "whole", 6)
    records = [[{**r, "time": 0} for r in read_metrics(tmp_path / name)] for name in ("run", "whole")]
    assert records[0] == records[1]


@pytest.mark.parametrize("file", ["metrics.jsonl", "tensorboard"])
def test_an_error_of_the_disk_while_numbers_are_written_is_one_clear_error(tmp_path: Path, file: str) -> None:
    """The limit on a file's size stands for a full disk."""
    write = {
        "metrics.jsonl": (
            "from warmstart.storage.records import Records; files = Records(path)",
            "files.write({'step': step})",
        ),
        "tensorboard": (
            "from warmstart.training.board import Board; files = Board(path, 0)",
            "files.write(step, {'a': 1.0})",
        ),
    }
    opened, written = write[file]
    program = f"""
import resource, signal
from pathlib import Path
path = Path({str(tmp_path / file)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
{opened}
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
for step in range(100):
    {written}
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stderr.count("StorageError: cannot be written") == 1
    assert ended.stderr.rstrip().endswith("this file system cannot hold so large a file: choose another place")
    assert file in ended.stderr
