"""The loop: stopped and resumed it is the same run; what is bad ends it and leaves what was there."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from warmstart.data.batches import Batch
from warmstart.data.plan import Position
from warmstart.errors import StorageError, TrainingError
from warmstart.formats.detect import open_checkpoint
from warmstart.training import state as checkpoints
from warmstart.training.learner import Learner, load_weights
from warmstart.training.loop import train
from warmstart.training.methods import Adam, Marian
from warmstart.training.metrics import read_metrics
from warmstart.training.terms import Measured


def evaluate(model: torch.nn.Module, step: int) -> Measured:
    assert not model.training
    return Measured(
        {"validation/loss": abs(step - 3.9), "validation/weight": next(model.parameters()).sum().item()},
        [{"task": "t", "source": "a", "reference": "b", "output": str(step)}],
    )


def go(run: Path, build: Any, stream: Any, config: Any, **options: Any) -> Any:
    model = build()
    options = {"seed": 5, "evaluate": evaluate, "progress": False} | options
    return model, train(run, Learner(model, config, 5, options.pop("objective", None)), stream, **options)


def arrays(checkpoint: Path) -> dict[str, bytes]:
    """Every array of a checkpoint, as bytes."""
    found = {}
    for name in ("model", "optimizer"):
        opened = open_checkpoint(checkpoint / f"{name}.safetensors")
        found |= {f"{name}/{entry}": opened.read(entry).tobytes() for entry in opened.entries}
    return found


def timeless(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "time"} for record in read_metrics(run)]


@pytest.mark.parametrize("fails_at", [1, 7, 8, 9])
def test_resumed_is_bit_equal(tmp_path: Path, build, stream, config, fails_at: int) -> None:  # type: ignore[no-untyped-def]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    model, expected = go(whole, build, stream(), config)
    with pytest.raises(KeyboardInterrupt):
        go(stopped, build, stream(fails_at=fails_at), config)
    resumed_model, result = go(stopped, build, stream(), config)
    assert result.steps == 6
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed_model.parameters(), strict=True))
    assert arrays(checkpoints.latest(whole)) == arrays(checkpoints.latest(stopped))  # type: ignore[arg-type]
    assert checkpoints.read_state(whole / "checkpoints/step-00000006") == checkpoints.read_state(
        stopped / "checkpoints/step-00000006"
    )
    assert timeless(whole) == timeless(stopped)
    assert (result.best_step, result.best_metrics) == (expected.best_step, expected.best_metrics)


def test_a_model_with_rms_norms_is_trained_and_resumed_bit_equal(tmp_path: Path, build, stream, config) -> None:  # type: ignore[no-untyped-def]
    def make() -> Any:
        return build(rms_norm=True)

    model, result = go(tmp_path / "whole", make, stream(), config)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "stopped", make, stream(fails_at=7), config)
    resumed, _ = go(tmp_path / "stopped", make, stream(), config)
    assert result.steps == 6
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
    start = dict(make().named_parameters())
    norms = {name: norm for name, norm in model.named_parameters() if "_norm." in name}
    assert len(norms) == 5
    assert all(name.endswith(".weight") and (norm != start[name]).any() for name, norm in norms.items())


def test_continued_training_takes_over_slots_and_step(tmp_path: Path, build, stream, config) -> None:  # type: ignore[no-untyped-def]
    """A new run that carries weights, moments, step and position makes the parent's very updates."""
    go(tmp_path / "parent", build, stream(), config)
    half = config.model_copy(update={"steps": 3})
    go(tmp_path / "half", build, stream(), half)
    checkpoint = checkpoints.latest(tmp_path / "half")
    assert checkpoint is not None
    model = build(seed=9)
    load_weights(checkpoint, model)
    moments = open_checkpoint(checkpoint / "optimizer.safetensors")
    slots = {(name[2:], name[0]): moments.read(name) for name in moments.entries}
    options = {"seed": 5, "evaluate": evaluate, "progress": False}
    position = checkpoints.read_state(checkpoint).position
    train(
        tmp_path / "on",
        Learner(model, config, 5),
        stream(),
        slots=slots,
        start_step=3,
        start_position=position,
        **options,
    )
    assert arrays(checkpoints.latest(tmp_path / "on")) == arrays(checkpoints.latest(tmp_path / "parent"))  # type: ignore[arg-type]


def test_fresh_optimizer_at_a_carried_step_resumes_bit_equal(tmp_path: Path, build, stream, config) -> None:  # type: ignore[no-untyped-def]
    later = config.model_copy(update={"steps": 104})
    go(tmp_path / "whole", build, stream(), later, start_step=100)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "stopped", build, stream(fails_at=6), later, start_step=100)
    go(tmp_path / "stopped", build, stream(), later, start_step=100)
    last = checkpoints.latest(tmp_path / "stopped")
    assert last is not None
    assert set(checkpoints.read_state(last).optimizer_steps.values()) == {4}
    assert arrays(last) == arrays(tmp_path / "whole/checkpoints/step-00000104")


def test_a_schedule_with_a_state_resets_the_optimizer_and_resumes_bit_equal(  # type: ignore[no-untyped-def]
    tmp_path: Path, build, stream, config
) -> None:
    schedule = Marian(
        warmup=3,
        decay=0.5,
        decay_strategy="batches",
        decay_start=3,
        decay_every=100,
        decay_repeat_warmup=True,
        decay_reset_optimizer=True,
    )
    config = config.model_copy(update={"schedule": schedule, "log_every": 1, "steps": 7})
    go(tmp_path / "whole", build, stream(), config)
    for fails_at in (7, 9):  # after the checkpoint of update 3, and within the warm-up that begins again
        run = tmp_path / f"stopped-{fails_at}"
        with pytest.raises(KeyboardInterrupt):
            go(run, build, stream(fails_at=fails_at), config)
        _, result = go(run, build, stream(), config)
        last = checkpoints.latest(run)
        assert last is not None
        assert arrays(last) == arrays(tmp_path / "whole/checkpoints/step-00000007")
        assert timeless(run) == timeless(tmp_path / "whole")
    assert set(checkpoints.read_state(last).optimizer_steps.values()) == {4}
    rates = [r["train/learning_rate"] for r in result.history if r["kind"] == "train"]
    assert rates == pytest.approx([0.01 * f for f in (0, 1 / 3, 2 / 3, 0.5, 1 / 6, 1 / 3, 0.5)])


def test_accumulation_equals_the_large_batch(build, stream, config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    class Large:
        """Batches 2k and 2k + 1 of the stream as one."""

        def reordered(self, order: int) -> Any:
            return self

        def iterate(self, position: Position) -> Any:
            small = stream().iterate(position)
            while True:
                (_, a), (after, b) = next(small), next(small)
                yield after, join(a, b)

    def join(a: Batch, b: Batch) -> Batch:
        def pad(x: Any, y: Any) -> Any:
            width = max(x.shape[1], y.shape[1])
            return np.concatenate([np.pad(z, ((0, 0), (0, width - z.shape[1]))) for z in (x, y)])

        def both(name: str) -> Any:
            return np.concatenate([getattr(a, name), getattr(b, name)])

        source, target = pad(a.source, b.source), pad(a.target, b.target)
        lengths = both("source_lengths"), both("target_lengths")
        return Batch(source, lengths[0], target, lengths[1], both("tasks"), both("indices"))

    # A key's bias has no gradient but rounding (softmax ignores a constant), which a tiny epsilon would blow up
    config = config.model_copy(update={"optimizer": Adam(epsilon=1e-3)})

    def plain() -> Any:
        return build(dropout=0.0)

    small, one = go(tmp_path / "small", plain, stream(), config)
    large, other = go(tmp_path / "large", plain, Large(), config.model_copy(update={"accumulation": 1}))
    for a, b in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    losses = [[r["train/loss"] for r in x.history if r["kind"] == "train"] for x in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_pruning_keeps_the_last_and_the_best(tmp_path: Path, build, stream, config) -> None:  # type: ignore[no-untyped-def]
    every = config.model_copy(update={"checkpoint_every": 1, "keep_last": 1})
    _, result = go(tmp_path, build, stream(), every)
    assert result.best_step == 4
    assert result.best_metrics["validation/loss"] == pytest.approx(0.1)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    assert checkpoints.best_checkpoint(tmp_path) == tmp_path / "checkpoints/step-00000004"


def test_a_crash_while_writing_leaves_the_checkpoint_before(  # type: ignore[no-untyped-def]
    tmp_path: Path, build, stream, config, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tmp_path / "whole", build, stream(), config)
    write, calls = checkpoints.write_safetensors, []

    def failing(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 6:  # the optimizer of the third checkpoint
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(checkpoints, "write_safetensors", failing)
    with pytest.raises(StorageError, match="space"):
        go(tmp_path / "run", build, stream(), config)
    assert checkpoints.latest(tmp_path / "run") == tmp_path / "run/checkpoints/step-00000002"
    go(tmp_path / "run", build, stream(), config)
    assert arrays(tmp_path / "run/checkpoints/step-00000006") == arrays(tmp_path / "whole/checkpoints/step-00000006")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 6}, "another seed"),
        ({"task_fingerprint": "other"}, "another task"),
        ({"steps": 6}, "raise steps"),
        ({"best_metric": "validation/chrf"}, "validation/loss"),
    ],
)
def test_what_cannot_be_resumed_says_why(  # type: ignore[no-untyped-def]
    tmp_path: Path, build, stream, config, change: dict[str, Any], text: str
) -> None:
    go(tmp_path, build, stream(), config)
    before = arrays(tmp_path / "checkpoints/step-00000006")
    update = {"steps": 9} | {k: v for k, v in change.items() if k in type(config).model_fields}
    options = {k: v for k, v in change.items() if k not in update}
    with pytest.raises(TrainingError, match=text):
        go(tmp_path, build, stream(), config.model_copy(update=update), **options)
    assert arrays(tmp_path / "checkpoints/step-00000006") == before


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, build, stream, config) -> None:  # type: ignore[no-untyped-def]
    go(tmp_path, build, stream(), config)
    model = torch.nn.Linear(2, 2)
    with pytest.raises(TrainingError, match="not of this model") as caught:
        load_weights(tmp_path / "checkpoints/step-00000006", model)
    assert {"weight", "bias", "encoder.embedding.weight"} <= {p.where for p in caught.value.problems}


def test_ties_are_stored_once(tmp_path: Path, build, stream, config) -> None:  # type: ignore[no-untyped-def]
    model, _ = go(tmp_path, build, stream(), config)
    stored = open_checkpoint(tmp_path / "checkpoints/step-00000006/model.safetensors").entries
    assert set(stored) == {name for name, _ in model.named_parameters()}
    assert "decoder.embedding.weight" not in stored


def test_a_changed_environment_is_said(tmp_path: Path, build, stream, config, caplog) -> None:  # type: ignore[no-untyped-def]
    go(tmp_path, build, stream(), config)
    path = tmp_path / "checkpoints/step-00000006/state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"environment": state["environment"] | {"torch": "1.0"}}))
    with caplog.at_level(logging.WARNING):
        go(tmp_path, build, stream(), config.model_copy(update={"steps": 7}))
    assert "torch was 1.0" in caplog.text


def test_damaged_state_is_one_clear_error(tmp_path: Path, build, stream, config) -> None:  # type: ignore[no-untyped-def]
    go(tmp_path, build, stream(), config)
    for text in ("", "[]", "{}", '{"best": 1}'):
        (tmp_path / "checkpoints/step-00000006/state.json").write_text(text)
        with pytest.raises(TrainingError, match="cannot be read"):
            go(tmp_path, build, stream(), config)


def test_tensorboard_shows_each_step_once_after_resuming(tmp_path: Path, build, stream, config) -> None:  # type: ignore[no-untyped-def]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, build, stream(fails_at=9), config)
    go(tmp_path, build, stream(), config)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("validation/loss")] == [0, 2, 4, 6]
    losses = [r["train/loss"] for r in read_metrics(tmp_path) if r["kind"] == "train"]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
