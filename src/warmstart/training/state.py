"""Checkpoints of a run: directories that are complete or invisible, from which a training goes on bit for bit.

::

    run/checkpoints/step-00001000/
        model.safetensors      every parameter once, under its first name
        optimizer.safetensors  ``SLOT.NAME``: Adam's ``m`` and ``v``, for instance
        average.safetensors    moving average of the weights, where there is one
        state.json             :class:`State`
        PINNED                 (by hand, or ``warmstart runs RUN --pin STEP``) this checkpoint is never removed
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from warmstart.data.plan import Position
from warmstart.errors import TrainingError, WarmstartError
from warmstart.formats.checkpoint import Array, Checkpoint, Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.safetensors import write_safetensors
from warmstart.inference.device import device_name
from warmstart.lean import dataclass
from warmstart.storage import atomic
from warmstart.training.config import TrainingConfig
from warmstart.training.precision import cpu_flags

PINNED = "PINNED"
_NAME = re.compile(r"step-(\d{8,})")
_REMOVE = "remove this checkpoint's directory to go on from the one before"


@dataclass(frozen=True)
class Best:
    """One of the best evaluations so far: its step and value."""

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
        order: how often the data order was changed, which is how often the run was rewound.
        best: the best evaluations so far, best first.
        sums: what the next training record of the metrics sums up.
        evaluated: the step of the last evaluation.
        skipped: updates that were left out because they were not finite.
        early_stopping, plateau: what these watches have seen (``patience.Watch``).
        schedule: what the learning rate's schedule remembers, where it does (``marian.MarianState``).
        records: how many records of each file belong to this step.
        environment: what bit equality depends on: torch, threads, ranks, precision, the device and its features.
        exact: False once the run went on in another environment, so that it cannot be repeated bit for bit.
        optimizer_steps: parameter → updates that its moments hold; a snapshot fills it in.
        betas: the decays of Adam's moments; None for another optimizer.
    """

    step: int
    position: Position
    seed: int
    task_fingerprint: str = ""
    order: int = 0
    best: tuple[Best, ...] = ()
    sums: Mapping[str, float] = field(default_factory=dict)
    evaluated: int | None = None
    skipped: int = 0
    early_stopping: Mapping[str, Any] = field(default_factory=dict)
    plateau: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    records: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, str | int] = field(default_factory=dict)
    exact: bool = True
    optimizer_steps: Mapping[str, int] = field(default_factory=dict)
    betas: Sequence[float] | None = None

    def settled(self, config: TrainingConfig) -> bool:
        """Whether nothing is left to be done at this step: an evaluation that is to come was made."""
        return config.evaluate_every is None or self.evaluated == self.step


def environment(
    device: torch.device, precision: str, ranks: int = 1, *, compiled: bool = False
) -> dict[str, str | int]:
    """What a bit-equal resumption needs to be the same: on a GPU no threads or features of the processor."""
    if device.type != "cpu":
        return {
            "torch": torch.__version__,
            "ranks": ranks,
            "device": device.type,
            "device_name": device_name(device),
            "precision": precision,
            "compiled": compiled,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }
    digest = hashlib.sha256(" ".join(cpu_flags()).encode()).hexdigest()[:16]
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "ranks": ranks,
        "device": device.type,
        "precision": precision,
        "cpu_flags": digest,
    }


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def saved_steps(run: Path) -> list[int]:
    """Of the complete checkpoints, ascending."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted(int(match[1]) for match, path in found if match and (path / "state.json").is_file())


def latest(run: Path) -> Path | None:
    """The complete checkpoint with the highest step."""
    steps = saved_steps(run)
    return checkpoint_path(run, steps[-1]) if steps else None


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint of the best evaluation, as the latest checkpoint knows it; None before any evaluation."""
    newest = latest(run)
    best = read_state(newest).best if newest else ()
    path = checkpoint_path(run, best[0].step) if best else None
    return path if path and path.is_dir() else None


def _write_arrays(path: Path, arrays: Mapping[str, Array], step: int) -> None:
    entries = [Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()]
    write_safetensors(path, entries, arrays.values(), {"step": str(step)})


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory: a copy, so that training may go on while it is written."""

    state: State
    files: Mapping[str, Mapping[str, Array]]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for arrays in self.files.values() for array in arrays.values())


def write(run: Path, snapshot: Snapshot) -> Path:
    """Write a checkpoint; it appears under its name only when all of it is on disk, in the place of one of that step.

    Raises:
        StorageError: it does not fit on the disk, or cannot be written; nothing has changed then.
    """
    path = checkpoint_path(run, snapshot.state.step)
    atomic.require_space(run, snapshot.nbytes)
    with atomic.new_directory(path, force=True) as folder:
        for name, arrays in snapshot.files.items():
            _write_arrays(folder / f"{name}.safetensors", arrays, snapshot.state.step)
        write_state(folder, snapshot.state)
        if (path / PINNED).exists():
            (folder / PINNED).touch()
    return path


def write_state(checkpoint: Path, state: State) -> None:
    """Replace what a checkpoint says besides arrays."""
    atomic.write_text(checkpoint / "state.json", json.dumps(asdict(state), indent=2) + "\n")


class Writer:
    """Writes snapshots behind the training's back, one at a time, and then removes what is not to be kept.

    ``before`` is called before each is written: it has the records on disk that the checkpoint counts on. ``after`` is
    given each that is complete, before others are removed.
    """

    def __init__(
        self, run: Path, before: Callable[[], None], after: Callable[[Path], None] = lambda checkpoint: None
    ) -> None:
        self.run, self.before, self.after = run, before, after
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, snapshot: Snapshot, keep_last: int) -> None:
        """Write ``snapshot`` when the one before is written. Raises what went wrong with that one."""
        self.wait()
        self._pending = self._pool.submit(self._write, snapshot, keep_last)

    def wait(self) -> None:
        """Until all is on disk.

        Raises:
            StorageError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def check(self) -> None:
        """Raise what went wrong meanwhile, without waiting."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def _write(self, snapshot: Snapshot, keep_last: int) -> None:
        self.before()
        self.after(write(self.run, snapshot))
        prune(self.run, keep_last, snapshot.state.best)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self._pool.shutdown()


def read_state(checkpoint: Path) -> State:
    """The ``state.json`` of a checkpoint.

    Raises:
        TrainingError: it cannot be read or is not one.
    """
    path = checkpoint / "state.json"
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        best = tuple(Best(**item) for item in raw.pop("best"))
        return State(**raw | {"position": Position(**raw["position"]), "best": best})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrainingError(
            "the state of this checkpoint cannot be read",
            where=path,
            found=f"{type(error).__name__}: {error}",
            todo=_REMOVE,
        ) from error


def open_arrays(checkpoint: Path, name: str) -> Checkpoint:
    """``NAME.safetensors`` of a checkpoint.

    Raises:
        TrainingError: it is not there or damaged.
    """
    try:
        return open_checkpoint(checkpoint / f"{name}.safetensors")
    except WarmstartError as error:
        raise TrainingError(
            "a file of this checkpoint cannot be read",
            where=error.where,
            expected=error.expected,
            found=error.found or error.what,
            todo=_REMOVE,
        ) from error


def prune(run: Path, keep_last: int, best: Sequence[Best]) -> None:
    """Remove all checkpoints but the last ``keep_last``, the best and the pinned; also what an earlier crash left."""
    folder = run / "checkpoints"
    kept = {item.step for item in best}
    for step in saved_steps(run)[:-keep_last]:
        path = checkpoint_path(run, step)
        if step not in kept and not (path / PINNED).exists():
            path.rename(hidden := path.with_name(f".{path.name}.removed"))  # invisible at once, removed at leisure
            shutil.rmtree(hidden)
    for left in folder.glob(".*"):
        shutil.rmtree(left, ignore_errors=True)
