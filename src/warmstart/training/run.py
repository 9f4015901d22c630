"""A run from its parts: data opened, the module built and filled as planned, trained, and written as a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from warmstart.bootstrap.apply import start_arrays, start_slots
from warmstart.bootstrap.plan import Plan
from warmstart.bundle.layout import describe_files, storages, write_bundle
from warmstart.bundle.model import Model, open_run_checkpoint
from warmstart.data.plan import Position
from warmstart.errors import TrainingError
from warmstart.formats.checkpoint import Array, Entry
from warmstart.formats.safetensors import write_safetensors
from warmstart.lean import dataclass
from warmstart.memory import keep_freed_memory
from warmstart.models.family import Family
from warmstart.sources.uri import shown
from warmstart.storage import atomic
from warmstart.training.config import TrainingConfig
from warmstart.training.device import computing_on
from warmstart.training.learner import Learner
from warmstart.training.loop import train
from warmstart.training.lora import adapters, merged
from warmstart.training.marian import MarianState, of_progress
from warmstart.training.methods import Marian
from warmstart.training.metrics import read_metrics
from warmstart.training.patience import Watch
from warmstart.training.ranks import Ranks, check_share, in_turn
from warmstart.training.rehearsal import Rehearsal, rehearse
from warmstart.training.standing import Standing, check_metrics
from warmstart.training.state import State, best_checkpoint, latest, prune, read_state
from warmstart.training.terms import Evaluate, TrainResult, best_metrics
from warmstart.training.workload import Job, Workload, check_files

OnCheckpoint = Callable[[Model, int], None]
"""Is given a complete checkpoint, opened, and the step at which the run began; called in the thread that writes."""


@dataclass(frozen=True)
class Prepared:
    """Everything that a training needs, built from its job.

    Attributes:
        learner: filled as planned, or with zeros where the run has a checkpoint to be restored.
        slots: optimizer state that is carried, if any.
        position: where the data go on, if the source's position is carried.
        schedule: what the schedule remembers, if the step is carried and the schedule remembers anything.
    """

    learner: Learner
    workload: Workload
    slots: dict[tuple[str, str], Array] | None
    position: Position | None
    schedule: dict[str, Any] | None


def prepare(job: Job, *, write: bool = True, progress: bool = True, ranks: Ranks | None = None) -> Prepared:
    """Open the data, build the model and fill it.

    Args:
        write: whether what is made once for a run may be written into its directory now.

    Raises:
        DataError: data that cannot be used, or no train or validation split.
        ConfigError: groups or adapters do not fit the model, or a metric that decides something is not measured.
        VocabularyError: a teacher has other vocabularies.
    """
    ranks = ranks or Ranks()
    in_turn(ranks, lambda: check_files(job))
    workload = in_turn(ranks, lambda: job.workload(job, write=write, progress=progress))
    check_metrics(job.training, workload.measures)
    with torch.device("meta"):
        module = job.family.build(job.model_config)
    first = ranks.share(latest(job.run)) is None
    arrays = dict(start_arrays(job.plan, job.models, job.seed)) if first else {}
    fill(module, arrays, job.family, job.model_config, job.device)
    stages = {p.name: p.stage for p in job.family.parameters(job.model_config)}
    position = _position(job.plan, job.models, workload.fingerprint)
    return Prepared(
        Learner(module, job.training, job.seed, workload.objective, stages, ranks),
        workload,
        (start_slots(job.plan, job.models) or None) if first else None,
        position,
        _schedule(job, position.epoch if position else 0) if first else None,
    )


def train_run(
    job: Job,
    *,
    progress: bool = True,
    on_checkpoint: OnCheckpoint | None = None,
    resumed: Callable[[], None] = lambda: None,
    ranks: Ranks | None = None,
) -> tuple[TrainResult, list[str]]:
    """Train as planned and write ``RUN/model``, the bundle with the best weights (``RUN/adapters`` with ``lora``).

    ``on_checkpoint`` is given each checkpoint when it is complete, and the last one again in the end. ``resumed`` is
    called by rank 0 when it is certain that a run that has a checkpoint may go on, or has nothing left to do.

    Returns the result and lines about the data (kept and dropped examples). Several ranks call it alike; rank 0 writes.
    """
    run, ranks = job.run, ranks or Ranks()
    check_share(job.training.accumulation, ranks.size)
    keep_freed_memory()

    def written(checkpoint: Path) -> None:
        if on_checkpoint is not None:
            model = open_run_checkpoint(checkpoint, job.family, job.model_config, job.vocabularies)
            on_checkpoint(model, job.plan.step)

    with ExitStack() as stack:
        stack.enter_context(computing_on(job.device, job.training))
        parts = prepare(job, progress=progress, ranks=ranks)
        starts = _starts(job) if ranks.first else []
        stack.enter_context(parts.workload.computing())
        result = ranks.share(finished(run, job.training))
        if result is not None and ranks.first:
            resumed()
        result = result or train(
            run,
            parts.learner,
            parts.workload.stream,
            seed=job.seed,
            evaluate=parts.workload.evaluate,
            slots=parts.slots,
            start_step=job.plan.step,
            start_position=parts.position,
            start_schedule=parts.schedule,
            task_fingerprint=parts.workload.fingerprint,
            describe=parts.workload.describe,
            written=written,
            resumed=resumed,
            progress=progress,
        )
    if ranks.first:
        newest = latest(run)
        assert newest is not None
        written(newest)  # it may have been killed before this, or before the next
        prune(run, job.training.keep_last, read_state(newest).best)
        _write_model(job, parts.learner, newest, result.steps, starts)
    return result, list(parts.workload.notes)


def _write_model(job: Job, learner: Learner, newest: Path, trained: int, starts: list[dict[str, Any]]) -> None:
    """The bundle with the best weights, or the ``newest`` ones, and adapters where there are some."""
    run = job.run
    best = best_checkpoint(run) or newest
    lineage = _lineage(job, read_state(best), trained, starts)
    learner.restore(best)
    with learner.evaluated():
        arrays = merged(learner.model)
        wanted = (arrays[e.name] for e in storages(job.family, job.model_config))
        write_bundle(run / "model", job.family, job.model_config, wanted, job.vocabularies, lineage, force=True)
        if job.training.lora is not None:
            _write_adapters(run / "adapters", learner, job.training)


def _write_adapters(folder: Path, learner: Learner, training: TrainingConfig) -> None:
    assert training.lora is not None
    arrays = {name: tensor.cpu().numpy() for name, tensor in adapters(learner.model).items()}
    entries = [Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()]
    metadata = {"rank": str(training.lora.rank), "alpha": str(training.lora.alpha)}
    with atomic.new_directory(folder, force=True) as made:
        write_safetensors(made / "adapters.safetensors", entries, arrays.values(), metadata)


def rehearse_run(job: Job, *, progress: bool = True) -> Rehearsal:
    """What :func:`train_run` would need of memory, time and disk, measured on a few updates. Nothing is written."""
    with computing_on(job.device, job.training):
        return _rehearse(job, prepare(job, write=False, progress=progress), progress)


def _rehearse(job: Job, parts: Prepared, progress: bool) -> Rehearsal:
    learner, newest = parts.learner, latest(job.run)
    if newest is not None:
        start = learner.restore(newest)
    else:
        start = State(job.plan.step, parts.position or Position(), job.seed, schedule=parts.schedule or {})
        if parts.slots is not None:
            learner.load_slots(parts.slots, job.plan.step)

    standing = Standing(job.training, start)

    def update(batches: Sequence[Any]) -> None:
        learner.model.train()
        learner.gradient(batches, start.step + 1, standing.plateaus)
        learner.apply(start.step + 1, standing.rate(start.step + 1))

    def evaluate(trial: Evaluate) -> None:
        learner.model.eval()
        with torch.no_grad(), learner.evaluated():
            trial(learner.model, start.step)

    with parts.workload.computing():
        return rehearse(
            job.run,
            parts.workload,
            job.training,
            update=update,
            evaluate=evaluate,
            snapshot=lambda: learner.snapshot(start),
            device=learner.device,
            precision=learner.precision,
            start_step=start.step,
            start_position=start.position,
            first=newest is None,
            progress=progress,
        )


def finished(run: Path, training: TrainingConfig) -> TrainResult | None:
    """The result of a run that has nothing left to do: it may have been stopped before its bundle was written."""
    newest = latest(run)
    state = read_state(newest) if newest else None
    if state is None or not state.settled(training):
        return None
    early = training.early_stopping
    if state.step != training.steps and not (early and Watch.from_dict(state.early_stopping).out_of_patience(early)):
        return None
    history = read_metrics(run)
    best = state.best[0].step if state.best else None
    return TrainResult(state.step, best, best_metrics(history, best), history, 0.0)


def fill(module: nn.Module, arrays: Mapping[str, Any], family: Family, config: Any, device: torch.device) -> None:
    """Give a module built on ``meta`` its values on ``device``; what ``arrays`` lack is zero (and restored from a
    checkpoint)."""
    state = {}
    made: dict[str, torch.Tensor] = {}
    for p in family.parameters(config):
        if p.storage not in made:
            value = arrays.get(p.storage)
            made[p.storage] = torch.from_numpy(np.zeros(p.shape, np.float32) if value is None else value).to(device)
        state[p.name] = made[p.storage]
    module.load_state_dict(state, assign=True)
    if len(made) < len(state):
        module.tie()  # type: ignore[operator]


def _position(plan: Plan, models: Sequence[Model], fingerprint: str) -> Position | None:
    """Where the data goes on: the source's position if the answer is ``carry`` and its data are these."""
    for answer, model in zip(plan.answers, models, strict=True):
        if answer.data == "carry" and model.state.get("task_fingerprint") == fingerprint:
            return Position(**model.state["position"])
    return None


def _schedule(job: Job, data_epoch: int) -> dict[str, Any] | None:
    """What the source's schedule remembers, where the step is carried; None where the schedule remembers nothing."""
    schedule = job.training.schedule
    if not isinstance(schedule, Marian):
        return None
    for answer, model in zip(job.plan.answers, job.models, strict=True):
        if answer.step != "carry":
            continue
        if raw := model.state.get("schedule"):
            state = MarianState.from_dict(raw)
        elif "progress" in model.checkpoint.metadata:
            state = of_progress(model.checkpoint.metadata["progress"])
        else:
            continue
        return replace(state, data_epoch=data_epoch, reloaded=schedule.warmup_at_reload).to_dict()
    return None


def _lineage(job: Job, state: State, trained: int, starts: list[dict[str, Any]]) -> dict[str, Any]:
    """Where the model came from, back to the first ancestor; ``trained`` updates were made in all. ``exact`` says
    whether the training can be repeated bit for bit: it went on in one environment only."""
    distillation = job.training.distillation
    return {
        "step": state.step,
        "trained": trained,
        "exact": state.exact,
        "coverage": job.plan.coverage,
        "teachers": [shown(teacher) for teacher in distillation.teachers] if distillation else [],
        "starts": starts,
    }


def _starts(job: Job) -> list[dict[str, Any]]:
    """The sources and their files as they were when the run began: later they may be others, or gone.

    Raises:
        TrainingError: the file that remembers them is damaged.
    """
    path = job.run / "starts.json"
    if latest(job.run) is not None and path.is_file():  # a run before its first checkpoint begins once more
        try:
            remembered: list[dict[str, Any]] = json.loads(path.read_bytes())
            return remembered
        except ValueError as error:
            todo = "remove it: the sources are then described as they are now"
            raise TrainingError("damaged", where=path, found=str(error), todo=todo) from error
    starts = [
        {"mode": mode, "source": shown(source), "files": describe_files(model.checkpoint), "ancestor": model.lineage}
        for mode, source, model in zip(job.plan.modes, job.plan.sources, job.models, strict=True)
    ]
    job.run.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, json.dumps(starts, indent=1, ensure_ascii=False) + "\n")
    return starts
