"""A run from its parts: data encoded, the module built and filled as planned, trained, and written as a bundle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from warmstart.bootstrap.apply import start_arrays, start_slots
from warmstart.bootstrap.plan import Plan
from warmstart.bundle.layout import describe_files, storages, write_bundle
from warmstart.bundle.model import Model
from warmstart.data.batches import Batch, BatchPlan, Position, sequential_batches
from warmstart.data.config import DataConfig
from warmstart.data.index import EncodedSplit
from warmstart.data.task import Task
from warmstart.errors import DataError
from warmstart.formats.checkpoint import Array
from warmstart.formats.detect import open_checkpoint
from warmstart.inference.scorer import TransformerScorer
from warmstart.inference.search import SearchConfig, translate_ids
from warmstart.models.family import Family
from warmstart.training.config import TrainingConfig
from warmstart.training.loop import TrainResult, train
from warmstart.training.metrics import read_metrics
from warmstart.training.objective import Objective, batch_loss
from warmstart.training.optimizer import build_optimizer, load_slots, set_learning_rate
from warmstart.training.precision import autocast, resolve
from warmstart.training.rehearsal import Rehearsal, rehearse
from warmstart.training.state import State, best_checkpoint, latest, read_state, restore, snapshot
from warmstart.vocabularies.vocabulary import Vocabulary


class Evaluation:
    """Loss and decoded metrics of every task's validation split; ``validation/loss`` is nats a token over all."""

    def __init__(
        self,
        tasks: Mapping[str, Task],
        splits: Mapping[str, EncodedSplit],
        vocabularies: tuple[Vocabulary, Vocabulary],
        search: SearchConfig | None,
        batch_tokens: int,
    ) -> None:
        self.tasks, self.splits, self.search, self.batch_tokens = tasks, splits, search, batch_tokens
        self.source, self.target = vocabularies

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        out: dict[str, float] = {}
        total, tokens = 0.0, 0
        for name, split in self.splits.items():
            nll, count = 0.0, 0
            for batch in sequential_batches(split, self.batch_tokens, (self.source.eos_id, self.target.eos_id)):
                loss = batch_loss(model, batch, 0.0)
                nll += float(loss.nll)
                count += loss.tokens
            total, tokens = total + nll, tokens + count
            prefix = "validation" if len(self.splits) == 1 else f"validation/{name}"
            if self.search is not None:
                out |= {f"{prefix}/{k}": v for k, v in self.decode(model, name).items()}
        return {"validation/loss": total / tokens, **out}

    def decode(self, model: Any, name: str) -> dict[str, float]:
        """Metrics of greedy or beam-search outputs of one task."""
        split, task = self.splits[name], self.tasks[name]
        sources = [split.source[a:b].tolist() for a, b in _spans(split.source_offsets)]
        found = translate_ids(
            [TransformerScorer(model)],
            sources,
            self.search,
            eos_id=self.target.eos_id,
            unk_id=self.target.unk_id,
        )
        outputs = [self.target.decode(best[0].ids) for best in found]
        predictions = [task.postprocess(o, dict(e)) for o, e in zip(outputs, split.examples, strict=True)]
        return task.score([e["target"] for e in split.examples], predictions)


def _spans(offsets: Any) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in pairwise(offsets)]


@dataclass(frozen=True)
class Prepared:
    """Everything that a training needs, built from its parts; nothing has been written.

    Attributes:
        module: filled as planned, or with zeros where the run has a checkpoint to be restored.
        slots: optimizer state that is carried, if any.
        position: where the data go on, if the source's position is carried.
        fingerprint: identity of the data.
        notes: lines about the data (kept and dropped examples).
    """

    module: nn.Module
    stream: BatchPlan
    evaluate: Evaluation
    slots: dict[tuple[str, str], Array] | None
    position: Position | None
    fingerprint: str
    notes: list[str]


def prepare(
    run: Path,
    family: Family,
    config: Any,
    vocabularies: Mapping[str, Vocabulary],
    plan: Plan,
    models: Sequence[Model],
    data: DataConfig,
    search: SearchConfig | None,
    seed: int,
) -> Prepared:
    """Encode the data, build the module and fill it.

    Raises:
        DataError: data that cannot be used, or no train or validation split.
    """
    source, target = vocabularies["source"], vocabularies["target"]
    tasks = data.build_tasks(source, target)
    splits = {name: data.encode(task, "train") for name, task in tasks.items() if "train" in task.splits}
    validation = {
        name: data.encode(task, "validation", keep_examples=True)
        for name, task in tasks.items()
        if "validation" in task.splits
    }
    if not splits or not validation:
        raise DataError("training needs a train and a validation split", found=", ".join(sorted(tasks)))
    sizes = {name: len(split) for name, split in splits.items()}
    rates = data.mixing_rates(sizes)
    stream = BatchPlan(
        list(splits.values()),
        eos_ids=(source.eos_id, target.eos_id),
        rates=[rates[name] for name in splits],
        batch_tokens=data.batch_tokens,
        window=data.window,
        seed=seed,
    )
    fingerprint = "+".join(f"{name}:{split.fingerprint[:16]}" for name, split in splits.items())
    with torch.device("meta"):
        module = family.build(config)
    fill(module, dict(start_arrays(plan, models, seed)) if latest(run) is None else {}, family, config, seed)
    return Prepared(
        module,
        stream,
        Evaluation(tasks, validation, (source, target), search, data.batch_tokens),
        start_slots(plan, models) or None,
        _position(plan, models, fingerprint),
        fingerprint,
        [f"{name}: {describe_counts(split)}" for name, split in splits.items()],
    )


def train_run(
    run: Path,
    family: Family,
    config: Any,
    vocabularies: Mapping[str, Vocabulary],
    plan: Plan,
    models: Sequence[Model],
    data: DataConfig,
    training: TrainingConfig,
    search: SearchConfig | None,
    seed: int,
    *,
    progress: bool = True,
) -> tuple[TrainResult, list[str]]:
    """Train as planned in the directory ``run`` and write ``run/model``, the bundle with the best weights.

    Returns the result and lines about the data (kept and dropped examples).
    """
    parts = prepare(run, family, config, vocabularies, plan, models, data, search, seed)
    result = finished(run, training) or train(
        run,
        parts.module,
        parts.stream,
        training,
        seed=seed,
        evaluate=parts.evaluate,
        slots=parts.slots,
        start_step=plan.step,
        start_position=parts.position,
        task_fingerprint=parts.fingerprint,
        progress=progress,
    )
    lineage = describe_lineage(plan, models, result)
    write_bundle(run / "model", family, config, _best_arrays(run, family, config), vocabularies, lineage, force=True)
    return result, parts.notes


def rehearse_run(
    run: Path,
    family: Family,
    config: Any,
    vocabularies: Mapping[str, Vocabulary],
    plan: Plan,
    models: Sequence[Model],
    data: DataConfig,
    training: TrainingConfig,
    search: SearchConfig | None,
    seed: int,
    *,
    progress: bool = True,
) -> Rehearsal:
    """What :func:`train_run` would need of memory, time and disk, measured on a few updates. Nothing is written."""
    parts = prepare(run, family, config, vocabularies, plan, models, data, search, seed)
    module = parts.module
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    device = next(module.parameters()).device
    precision, _ = resolve(training.precision, device)
    optimizer = build_optimizer(module, training, {row.target: row.stage for row in plan.rows})
    newest = latest(run)
    if newest is not None:
        start = restore(newest, module, optimizer)
    else:
        start = State(plan.step, parts.position or Position(), seed)
        if parts.slots is not None:
            load_slots(optimizer, module, parts.slots, plan.step)
    objective = Objective(training)

    def update(batches: Sequence[Batch]) -> None:
        module.train()
        divisor = objective.divisor(batches)
        for batch in batches:
            with autocast(precision, device):
                loss = objective(module, batch).loss
            (loss / divisor).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), training.clip_norm or math.inf)
        set_learning_rate(optimizer, training.learning_rate)
        optimizer.step()
        optimizer.zero_grad()

    def evaluate(splits: Mapping[str, EncodedSplit]) -> None:
        module.eval()
        some = copy(parts.evaluate)
        some.splits = splits
        with torch.no_grad():
            some(module, start.step)

    return rehearse(
        run,
        parts.stream,
        training,
        update=update,
        evaluate=evaluate,
        validation=parts.evaluate.splits,
        snapshot=lambda: snapshot(module, optimizer, start),
        device=device,
        start_step=start.step,
        start_position=start.position,
        first=newest is None,
        progress=progress,
    )


def finished(run: Path, training: TrainingConfig) -> TrainResult | None:
    """The result of a run whose last step is done: it may have been stopped before its bundle was written."""
    newest = latest(run)
    state = read_state(newest) if newest else None
    if state is None or state.step != training.steps:
        return None
    history = read_metrics(run)
    best = state.best.step if state.best else None
    measured = [r for r in history if r["step"] == best and training.best_metric in r]
    metrics = {k: float(v) for k, v in measured[-1].items() if k.startswith("validation/")} if measured else {}
    return TrainResult(state.step, best, metrics, history, 0.0)


def fill(module: nn.Module, arrays: Mapping[str, Any], family: Family, config: Any, seed: int) -> None:
    """Give a module built on ``meta`` its values; what ``arrays`` lack is zero (and restored from a checkpoint)."""
    state = {}
    made: dict[str, torch.Tensor] = {}
    for p in family.parameters(config):
        if p.storage not in made:
            value = arrays.get(p.storage)
            made[p.storage] = torch.from_numpy(np.zeros(p.shape, np.float32) if value is None else value)
        state[p.name] = made[p.storage]
    module.load_state_dict(state, assign=True)
    module.tie()  # type: ignore[operator]


def _best_arrays(run: Path, family: Family, config: Any) -> Any:
    best = best_checkpoint(run) or latest(run)
    assert best is not None
    checkpoint = open_checkpoint(best / "model.safetensors")
    return (checkpoint.read(e.name) for e in storages(family, config))


def _position(plan: Plan, models: Sequence[Model], fingerprint: str) -> Position | None:
    """Where the data goes on: the source's position if the answer is ``carry`` and its data are these."""
    for answer, model in zip(plan.answers, models, strict=True):
        if answer.data == "carry" and model.state.get("task_fingerprint") == fingerprint:
            return Position(**model.state["position"])
    return None


def describe_lineage(plan: Plan, models: Sequence[Model], result: TrainResult) -> dict[str, Any]:
    """Where the model came from, back to the first ancestor: the best of ``trained`` updates, that of ``step``."""
    return {
        "step": result.best_step,
        "trained": result.steps,
        "coverage": plan.coverage,
        "starts": [
            {
                "mode": mode,
                "source": Path(source).name,
                "files": describe_files(model.checkpoint),
                "ancestor": model.lineage,
            }
            for mode, source, model in zip(plan.modes, plan.sources, models, strict=True)
        ],
    }


def describe_counts(split: EncodedSplit) -> str:
    """Kept and dropped examples in a sentence."""
    c = split.counts
    text = f"{c.kept:,} examples"
    others = ((c.dropped_long, "too long"), (c.dropped_empty, "empty"), (c.unknown_source, "unknown source tokens"))
    for count, what in others:
        if count:
            text += f", {count:,} {what}"
    return text
