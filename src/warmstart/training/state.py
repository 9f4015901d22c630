"""Checkpoints of a run: directories that are complete or invisible, from which a training goes on bit for bit.

::

    run/checkpoints/step-00001000/
        model.safetensors      every parameter once, under its first name
        optimizer.safetensors  ``m.NAME`` and ``v.NAME``, Adam's moments
        state.json             :class:`State`
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from warmstart.data.batches import Position
from warmstart.errors import Problem, TrainingError
from warmstart.formats.checkpoint import Array, Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.safetensors import write_safetensors
from warmstart.storage import atomic
from warmstart.training.optimizer import dump_slots, dump_steps, load_slots
from warmstart.training.precision import cpu_flags

_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Best:
    """The best evaluation so far: its step and value."""

    step: int
    value: float


@dataclass(frozen=True)
class State:
    """What resuming needs besides arrays.

    Attributes:
        step: updates done.
        position: where the next batch starts.
        seed: of the run; random numbers derive from it and the step.
        task_fingerprint: identity of the data, so that ``position`` is never used on other data.
        best: the best evaluation so far.
        sums: what the next training record of the metrics sums up: loss, nll, tokens, updates.
        environment: what bit equality depends on: torch, threads, device, precision, processor features.
        optimizer_steps: parameter → updates that its moments hold; :func:`save` fills it in.
    """

    step: int
    position: Position
    seed: int
    task_fingerprint: str = ""
    best: Best | None = None
    sums: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, str | int] = field(default_factory=dict)
    optimizer_steps: Mapping[str, int] = field(default_factory=dict)


def environment(device: torch.device, precision: str) -> dict[str, str | int]:
    """What a bit-equal resumption needs to be the same."""
    digest = hashlib.sha256(" ".join(cpu_flags()).encode()).hexdigest()[:16]
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "precision": precision,
        "cpu_flags": digest,
    }


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def _steps(run: Path) -> list[int]:
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted(int(match[1]) for match, path in found if match and (path / "state.json").is_file())


def latest(run: Path) -> Path | None:
    """The complete checkpoint with the highest step."""
    steps = _steps(run)
    return checkpoint_path(run, steps[-1]) if steps else None


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint of the best evaluation, as the latest checkpoint knows it; None before any evaluation."""
    newest = latest(run)
    best = read_state(newest).best if newest else None
    path = checkpoint_path(run, best.step) if best else None
    return path if path and path.is_dir() else None


def _unique(model: nn.Module) -> dict[str, Tensor]:
    """First name → parameter or buffer; of a tie, only the first."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def _write_arrays(path: Path, arrays: Mapping[str, Array], step: int) -> None:
    entries = [Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()]
    write_safetensors(path, entries, arrays.values(), {"step": str(step)})


def save(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> Path:
    """Write a checkpoint; it appears under its name only when all of it is on disk."""
    path = checkpoint_path(run, state.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in _unique(model).items()}
    moments = {f"{slot}.{name}": array for (name, slot), array in dump_slots(optimizer, model).items()}
    state = replace(state, optimizer_steps=dump_steps(optimizer, model))
    with atomic.new_directory(path) as folder:
        _write_arrays(folder / "model.safetensors", weights, state.step)
        _write_arrays(folder / "optimizer.safetensors", moments, state.step)
        atomic.write_text(folder / "state.json", json.dumps(asdict(state), indent=2) + "\n")
    return path


def read_state(checkpoint: Path) -> State:
    """The ``state.json`` of a checkpoint.

    Raises:
        TrainingError: it cannot be read or is not one.
    """
    path = checkpoint / "state.json"
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        best = raw.pop("best")
        return State(**raw | {"position": Position(**raw["position"]), "best": Best(**best) if best else None})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrainingError(
            "the state of this checkpoint cannot be read",
            where=path,
            found=f"{type(error).__name__}: {error}",
            todo="remove this checkpoint's directory to go on from the one before",
        ) from error


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Set the model's parameters to the checkpoint's.

    Raises:
        TrainingError: names or shapes differ; the model is as it was.
    """
    arrays = open_checkpoint(checkpoint / "model.safetensors")
    wanted = _unique(model)
    problems = [Problem("this parameter is not in the checkpoint", where=n) for n in wanted if n not in arrays.entries]
    problems += [Problem("the model has no such parameter", where=n) for n in arrays.entries if n not in wanted]
    problems += [
        Problem(
            "this parameter has another shape",
            where=n,
            expected=str(tuple(t.shape)),
            found=str(arrays.entries[n].shape),
        )
        for n, t in wanted.items()
        if n in arrays.entries and arrays.entries[n].shape != tuple(t.shape)
    ]
    if problems:
        raise TrainingError(
            "the checkpoint is not of this model",
            where=checkpoint,
            todo="resume with the configuration the run began with, or begin a new run",
            problems=problems,
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(torch.from_numpy(np.array(arrays.read(name))))


def restore(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Set model and optimizer to a checkpoint's and return the rest of its state.

    Raises:
        TrainingError: the checkpoint is not of this model, or its state cannot be read.
    """
    state = read_state(checkpoint)
    load_weights(checkpoint, model)
    moments = open_checkpoint(checkpoint / "optimizer.safetensors")
    slots = {}
    for name in moments.entries:
        slot, _, parameter = name.partition(".")
        slots[parameter, slot] = moments.read(name)
    if slots.keys() != {(name, slot) for name in state.optimizer_steps for slot in ("m", "v")}:
        raise TrainingError(
            "the optimizer's arrays are not those that state.json lists",
            where=checkpoint,
            todo="remove this checkpoint's directory to go on from the one before",
        )
    load_slots(optimizer, model, slots, state.optimizer_steps)
    return state


def prune(run: Path, keep_last: int, best: Best | None) -> None:
    """Remove all but the last ``keep_last`` checkpoints and the best one; also what an earlier crash left."""
    folder = run / "checkpoints"
    for step in _steps(run)[:-keep_last]:
        if best is None or step != best.step:
            path = checkpoint_path(run, step)
            path.rename(hidden := path.with_name(f".{path.name}.removed"))  # invisible at once, removed at leisure
            shutil.rmtree(hidden)
    for left in folder.glob(".*"):
        shutil.rmtree(left, ignore_errors=True)
