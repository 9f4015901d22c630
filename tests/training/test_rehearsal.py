"""A rehearsal measures what the training would need, and leaves nothing behind."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from warmstart import api
from warmstart.data.batches import Batch, BatchPlan
from warmstart.data.index import Counts, EncodedSplit
from warmstart.errors import WarmstartError
from warmstart.training.config import TrainingConfig
from warmstart.training.methods import InverseSqrt
from warmstart.training.objective import CrossEntropy
from warmstart.training.rehearsal import ORDINARY, WARM, Rehearsal, count_evaluations, rehearse
from warmstart.training.state import latest
from warmstart.training.terms import Evaluate, Measured
from warmstart.training.text_task import TextWorkload


def encoded(source: Sequence[int], target: Sequence[int]) -> EncodedSplit:
    """Examples of these lengths; every token of example i is i."""

    def rows(lengths: Sequence[int]) -> tuple[Any, Any]:
        return np.repeat(np.arange(len(lengths)), lengths).astype(np.int32), np.cumsum([0, *lengths])

    examples = tuple({"source": str(i)} for i in range(len(source)))
    return EncodedSplit(*rows(source), *rows(target), Counts(len(source), 0, 0, 0), ("", ""), examples)


def plan(*splits: EncodedSplit, batch_tokens: int = 40) -> BatchPlan:
    return BatchPlan(splits, eos_ids=(0, 0), batch_tokens=batch_tokens, seed=3)


def training(**changes: Any) -> TrainingConfig:
    options = {"steps": 100, "learning_rate": 0.1, "schedule": InverseSqrt(warmup=2), "checkpoint_every": 50}
    return TrainingConfig(**options | {"evaluate_every": 30, "log_every": 2} | changes)


class Evaluated:
    """Stands for an evaluation: it takes the clock's time, and tells what it was given."""

    def __init__(self, clock: Clock, splits: dict[str, EncodedSplit]) -> None:
        self.clock, self.splits = clock, splits

    def __call__(self, model: object, step: int) -> Measured:
        self.clock.evaluated |= self.splits
        self.clock.now += sum(0.01 * (len(split.source) + len(split.target)) for split in self.splits.values())
        return Measured({})


class Clock:
    """Time passes only where the test says so: an update takes a second, and four more for a new shape."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: float = 5.0) -> None:
        self.now, self.first = 0.0, first
        self.seen: set[tuple[int, ...]] = set()
        self.updates: list[list[Batch]] = []
        self.evaluated: dict[str, EncodedSplit] = {}
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def update(self, batches: Sequence[Batch]) -> None:
        self.updates.append(list(batches))
        shape = tuple(n for batch in batches for n in (*batch.source.shape, *batch.target.shape, *batch.indices))
        self.now += 1.0 if shape in self.seen else self.first
        self.seen.add(shape)

    def evaluate(self, trial: Evaluate) -> None:
        trial(torch.nn.Module(), 0)

    def snapshot(self) -> Any:
        return np.zeros(1000, np.uint8)

    def rehearse(
        self,
        run: Path,
        stream: BatchPlan,
        config: TrainingConfig,
        *,
        validation: dict[str, EncodedSplit],
        **options: Any,
    ) -> Rehearsal:
        evaluation: Any = Evaluated(self, validation)
        return rehearse(
            run,
            TextWorkload(stream, CrossEntropy(config), evaluation, ["task"], "", []),
            config,
            update=self.update,
            evaluate=self.evaluate,
            snapshot=self.snapshot,
            device=torch.device("cpu"),
            progress=False,
            **options,
        )


@pytest.fixture
def validation() -> dict[str, EncodedSplit]:
    lengths = list(np.random.default_rng(1).integers(1, 9, 200))
    return {"a": encoded(lengths, lengths[::-1]), "b": encoded([2] * 7, [3] * 7)}


def test_the_longest_batch_is_the_longest_of_all_tasks() -> None:
    batch = plan(encoded([3, 9, 2, 5], [1, 1, 4, 2]), encoded([1, 2], [10, 8])).longest()
    assert len(batch.source) == 40 // 10
    assert sorted(zip(batch.tasks, batch.indices, strict=True)) == [(0, 1), (0, 3), (1, 0), (1, 1)]
    assert (batch.source.shape[1], batch.target.shape[1]) == (9, 10)


def test_times_follow_from_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: dict[str, EncodedSplit]
) -> None:
    clock = Clock(monkeypatch, first=1.2)
    lengths = list(np.random.default_rng(0).integers(1, 9, 300))
    stream = plan(encoded(lengths, lengths))
    config = training(accumulation=2)
    found = clock.rehearse(tmp_path / "not/there", stream, config, validation=validation)
    longest = stream.longest()
    assert all((batch.indices == longest.indices).all() for batch in clock.updates[0])
    assert all(len(batches) == 2 for batches in clock.updates)
    assert (found.longest_seconds, found.step_seconds) == pytest.approx((1.0, 1.2))  # new shapes keep coming
    ordinary = clock.updates[-ORDINARY:]
    updates = WARM + ORDINARY
    expected = [batch for (_, batch), _ in zip(stream.iterate(), range(2 * updates), strict=False)][2 * WARM :]
    for mine, its in zip((b for batches in ordinary for b in batches), expected, strict=True):
        assert (mine.indices == its.indices).all()
    assert found.longest == "5 rows of 8 source and 8 target tokens"
    assert found.work == "tokens"
    assert found.work_per_second == pytest.approx(sum(int(b.target_lengths.sum()) for b in expected) / (1.2 * ORDINARY))
    tokens = sum(len(split.source) + len(split.target) for split in validation.values())
    assert found.evaluation_seconds == pytest.approx(0.01 * tokens)
    assert found.total_seconds == pytest.approx(100 * 1.2 + 5 * found.evaluation_seconds)
    assert (found.steps, found.evaluations, found.checkpoint_bytes) == (100, 5, 1000)
    later = clock.rehearse(tmp_path, stream, config, validation=validation, start_step=60, first=False)
    assert (later.steps, later.evaluations) == (40, 2)
    assert found.notes == ()


def test_of_slow_updates_few_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: dict[str, EncodedSplit]
) -> None:
    clock = Clock(monkeypatch, first=20.0)
    lengths = list(range(1, 9)) * 40
    found = clock.rehearse(tmp_path, plan(encoded(lengths, lengths)), training(), validation=validation)
    assert len(clock.updates) == 2 + 2
    assert found.step_seconds == 20.0


def test_a_part_of_the_validation_is_like_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: dict[str, EncodedSplit]
) -> None:
    clock = Clock(monkeypatch)
    clock.rehearse(tmp_path, plan(encoded([8] * 9, [8] * 9)), training(), validation=validation)
    whole, part = validation["a"], clock.evaluated["a"]
    lengths = np.maximum(whole.source_lengths, whole.target_lengths)
    assert len(part) == int(40 / lengths.mean())
    for row, example in enumerate(part.examples):
        i = int(example["source"])
        assert set(part.source[part.source_offsets[row] : part.source_offsets[row + 1]]) == {i}
        assert part.target_lengths[row] == whole.target_lengths[i]
    chosen = np.maximum(part.source_lengths, part.target_lengths)
    assert chosen.mean() == pytest.approx(lengths.mean(), rel=0.15)
    assert len(clock.evaluated["b"]) == 7


def test_what_does_not_fit_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: dict[str, EncodedSplit]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**4, 6000, 3999))
    stream = plan(encoded([8] * 9, [8] * 9))
    clock = Clock(monkeypatch)
    (note,) = clock.rehearse(tmp_path / "run", stream, training(), validation=validation).notes
    assert note.startswith("4 checkpoints of this size do not fit")
    assert clock.rehearse(tmp_path / "run", stream, training(keep_last=1), validation=validation).notes == ()


def test_memory_counts_what_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: dict[str, EncodedSplit]
) -> None:
    monkeypatch.setattr("warmstart.training.rehearsal._memory", lambda device: (8 * 10**9, 10**10))
    stream, clock = plan(encoded([8] * 9, [8] * 9)), Clock(monkeypatch)
    exact, rough = (
        clock.rehearse(tmp_path, stream, training(), validation=validation, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert (exact.memory_more, exact.notes) == (0, ())
    assert rough.memory_more > 10**9
    assert rough.notes[0].startswith("memory is almost used up")


@pytest.mark.parametrize("every", [1, 3, 5, 7, 20])
@pytest.mark.parametrize("start", [0, 3, 7])
@pytest.mark.parametrize("evaluate_first", [True, False])
@pytest.mark.parametrize("begin", [0, 2, 5])
def test_evaluations_are_those_of_the_loop(every: int, start: int, evaluate_first: bool, begin: int) -> None:
    config = training(steps=7, evaluate_every=every, evaluate_first=evaluate_first, intervals_from=begin)
    due = [step for step in range(start + 1, 8) if (step - begin) % every == 0 or step == 7]
    assert count_evaluations(config, start, False) == len(due)
    assert count_evaluations(config, start, True) == len(due) + (evaluate_first and start < 7)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Words and themselves backwards, and a configuration."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcde"), size=rng.integers(2, 6))) for _ in range(120)]
    for split, part in (("train", words[:100]), ("validation", words[100:])):
        Path(f"{split}.tsv").write_text("".join(f"{word}\t{word[::-1]}\n" for word in part))
    splits = {name: {"tsv": f"{name}.tsv"} for name in ("train", "validation")}
    options = {"steps": 4, "learning_rate": 0.01, "evaluate_every": 2, "checkpoint_every": 2, "precision": "float32"}
    config = {
        "run": "runs/a",
        "model": {"d_model": 16, "num_heads": 2, "d_ff": 32, "encoder_layers": 1, "decoder_layers": 1},
        "vocabularies": {"source": {"type": "characters"}, "target": {"type": "characters"}},
        "data": {"tasks": {"reverse": {"splits": splits}}, "max_length": 32, "batch_tokens": 128},
        "training": options | {"schedule": {"type": "constant"}},
    }
    Path("c.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_a_dry_run_writes_nothing_and_the_training_is_as_without_it(workplace: Path) -> None:
    before, folders = tree(workplace), sorted(workplace.rglob("*"))
    found = api.dry_run("c.yaml", progress=False)
    assert tree(workplace) == before
    assert sorted(workplace.rglob("*")) == folders
    assert (found["steps"], found["evaluations"]) == (4, 3)
    assert found["memory"] > 50e6
    api.train("c.yaml", progress=False)
    api.train("c.yaml", ["run=runs/b"], progress=False)
    newest, other = latest(Path("runs/a")), latest(Path("runs/b"))
    assert newest is not None
    assert other is not None
    assert (newest / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    actual = sum(file.stat().st_size for file in newest.glob("*.safetensors"))
    headers = sum(int.from_bytes(file.read_bytes()[:8], "little") + 8 for file in newest.glob("*.safetensors"))
    assert found["checkpoint_bytes"] == pytest.approx(actual - headers, rel=0.01)


def test_a_dry_run_of_a_run_that_was_stopped(workplace: Path) -> None:
    api.train("c.yaml", progress=False)
    for path in (Path("runs/a/model"), Path("runs/a/checkpoints/step-00000004")):
        shutil.rmtree(path)
    before = tree(workplace)
    found = api.dry_run("c.yaml", progress=False)
    assert (found["steps"], found["evaluations"]) == (2, 1)
    assert tree(workplace) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.tasks.reverse.splits.train.tsv=nowhere.tsv"], "nowhere.tsv"),
        (["training=null"], "training is missing"),
        (["start={source: runs/none, mode: init}"], "runs/none"),
    ],
)
def test_a_dry_run_finds_what_would_fail(workplace: Path, overrides: list[str], message: str) -> None:
    before = tree(workplace)
    with pytest.raises(WarmstartError, match=message):
        api.dry_run("c.yaml", overrides, progress=False)
    assert tree(workplace) == before


def test_what_only_a_gpu_does_is_said_where_there_is_none(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert api.dry_run("c.yaml", ["training.compile=true"], progress=False)["device"] == "cpu"
    assert "training.compile changes nothing: this training is on the CPU" in caplog.text
