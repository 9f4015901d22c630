"""A training tried out: everything is built, a few updates are made in memory, and nothing is written."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from warmstart.data.plan import Position
from warmstart.lean import dataclass
from warmstart.storage.progress import Progress
from warmstart.training.config import TrainingConfig
from warmstart.training.terms import BatchStream, Evaluate
from warmstart.training.workload import Workload

WARM, ORDINARY = 8, 16  # updates that are made first, and those that are measured
PATIENCE = 30.0  # seconds after which no more are made
KERNELS = 1_500_000_000  # bytes that oneDNN takes for kernels in bfloat16, at any size of a model (docs/decisions/0058)


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class Rehearsal:
    """What was measured, and what follows from it. Times are in seconds, memory and sizes in bytes.

    Attributes:
        device: ``cpu`` or ``cuda``.
        steps, evaluations: those that are still to be done.
        longest: the size of the batch with the longest examples, in words.
        longest_seconds, step_seconds: of an update with that batch, and the mean of ordinary ones.
        work, work_per_second: what is counted for the speed, and how much of it ordinary updates do.
        evaluation_seconds: of one evaluation, extrapolated from a batch of each task.
        total_seconds: ``steps`` times the mean, and the evaluations.
        memory, memory_there: the most that was used, of the process or of the GPU, and all that there is.
        memory_more: what may come on top over the first few hundred updates.
        checkpoint_bytes, disk_free: size of a checkpoint, and free space where the run will be.
        notes: what will go wrong.
    """

    device: str
    steps: int
    evaluations: int
    longest: str
    longest_seconds: float
    step_seconds: float
    work: str
    work_per_second: float
    evaluation_seconds: float
    total_seconds: float
    memory: int
    memory_there: int
    memory_more: int
    checkpoint_bytes: int
    disk_free: int
    notes: tuple[str, ...]


def rehearse(
    run: Path,
    workload: Workload,
    config: TrainingConfig,
    *,
    update: Callable[[Sequence[Any]], object],
    evaluate: Callable[[Evaluate], object],
    snapshot: Callable[[], Sized],
    device: torch.device,
    precision: str = "float32",
    start_step: int = 0,
    start_position: Position | None = None,
    first: bool = True,
    progress: bool = True,
) -> Rehearsal:
    """Updates with the longest batch, some ordinary ones, and the evaluation of a part of each validation split.

    The first ordinary updates are made to warm up. Of the others each is made once, with batches of its own: new shapes
    keep coming in a training, too, and libraries prepare themselves for each. After half a minute no more are made.

    Args:
        run: where the run will be; it need not be there.
        update: makes one update with ``config.accumulation`` batches, as the training does.
        evaluate: makes an evaluation, as the training does.
        snapshot: copies what a checkpoint holds, as the training does before it writes one and goes on meanwhile.
        first: no checkpoint of the run is there.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    longest, trials, objective = workload.longest(), workload.trials(), workload.objective
    with ExitStack() as stack:
        bar = Progress("rehearsing", 2 + WARM + ORDINARY + len(trials), "steps") if progress else None
        clock = _Clock(device, stack.enter_context(bar) if bar else None)
        clock.time(update, [longest] * config.accumulation)
        held = snapshot()
        longest_seconds = clock.time(update, [longest] * config.accumulation)
        size = held.nbytes
        del held
        start = start_position or Position()
        seconds, done = _ordinary(clock, update, workload.stream, start, config.accumulation)
        work = sum(objective.amount(batch) for batch in done)
        evaluation = sum(clock.time(evaluate, trial.evaluate) * trial.times for trial in trials)
    step_seconds = statistics.fmean(seconds)
    steps = max(0, config.steps - start_step)
    evaluations = count_evaluations(config, start_step, first)
    memory, there = _memory(device)
    free = shutil.disk_usage(_existing(run)).free
    kept = config.keep_last + config.keep_best + 1  # one more while it is written
    notes = []
    more = KERNELS if device.type == "cpu" and precision == "bfloat16" else 0
    if memory + more > 0.9 * there:
        notes.append(
            "memory is almost used up: make batches smaller (data.batch_tokens, data.batch_seconds), and raise "
            "training.accumulation for it"
        )
    if size * kept > free:
        notes.append(f"{kept} checkpoints of this size do not fit on the disk: free space, or lower training.keep_last")
    return Rehearsal(
        device=device.type,
        steps=steps,
        evaluations=evaluations,
        longest=workload.size(longest),
        longest_seconds=longest_seconds,
        step_seconds=step_seconds,
        work=objective.work,
        work_per_second=work / sum(seconds),
        evaluation_seconds=evaluation,
        total_seconds=steps * step_seconds + evaluations * evaluation,
        memory=memory,
        memory_there=there,
        memory_more=more,
        checkpoint_bytes=size,
        disk_free=free,
        notes=tuple(notes),
    )


def count_evaluations(config: TrainingConfig, start_step: int, first: bool) -> int:
    """How often a training from ``start_step`` evaluates: at every multiple of ``evaluate_every`` counted from
    ``intervals_from``, at the last step, and before the first update of a new run if ``evaluate_first``."""
    every, steps = config.evaluate_every, config.steps
    if every is None or start_step >= steps:
        return 0
    begun, last = start_step - config.intervals_from, steps - config.intervals_from
    return last // every - begun // every + (last % every != 0) + (first and config.evaluate_first)


class _Clock:
    def __init__(self, device: torch.device, bar: Progress | None) -> None:
        self.device, self.bar = device, bar

    def time(self, function: Callable[[Any], object], argument: Any) -> float:
        """Seconds that a call takes."""
        began = time.perf_counter()
        function(argument)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.bar is not None:
            self.bar.update(1)
        return time.perf_counter() - began


def _ordinary(
    clock: _Clock, update: Callable[[Sequence[Any]], object], stream: BatchStream, position: Position, accumulation: int
) -> tuple[list[float], list[Any]]:
    """(seconds of each update that is measured, their batches)."""
    batches = [batch for _, batch in islice(stream.iterate(position), (WARM + ORDINARY) * accumulation)]
    updates = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
    seconds: list[float] = []
    for parts in updates:
        seconds.append(clock.time(update, parts))
        if sum(seconds) > PATIENCE:
            break
    first = min(WARM, len(seconds) // 2)
    return seconds[first:], [batch for parts in updates[first : len(seconds)] for batch in parts]


def _memory(device: torch.device) -> tuple[int, int]:
    """(the most used so far, all there is)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
    unit = 1 if sys.platform == "darwin" else 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return used, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _existing(path: Path) -> Path:
    """The nearest directory above ``path`` that is there, or itself."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
