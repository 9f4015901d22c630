"""The loop."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from warmstart.data.batches import Batch, Position
from warmstart.errors import TrainingError
from warmstart.formats.checkpoint import Array
from warmstart.storage.locks import directory_lock
from warmstart.storage.processes import rank
from warmstart.storage.progress import Progress
from warmstart.training import state as checkpoints
from warmstart.training.config import TrainingConfig
from warmstart.training.metrics import Metrics, Record, read_metrics
from warmstart.training.objective import batch_loss
from warmstart.training.optimizer import build_optimizer, load_slots, trainable
from warmstart.training.precision import autocast, resolve
from warmstart.training.schedule import factor
from warmstart.training.state import Best, State

logger = logging.getLogger(__name__)
Evaluate = Callable[[nn.Module, int], dict[str, float]]


class BatchStream(Protocol):
    """Batches without end, from any position on."""

    def iterate(self, position: Position) -> Iterator[tuple[Position, Batch]]:
        """Each batch with the position after it."""


@dataclass(frozen=True)
class TrainResult:
    """What a training came to. ``history`` holds all records of the run; ``seconds`` are of this call alone."""

    steps: int
    best_step: int | None
    best_metrics: dict[str, float]
    history: list[Record] = field(repr=False)
    seconds: float


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of all random numbers of one update: nothing else has to be kept for resuming."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8], "little") >> 1


def train(
    run: Path,
    model: nn.Module,
    stream: BatchStream,
    config: TrainingConfig,
    *,
    seed: int,
    evaluate: Evaluate,
    slots: Mapping[tuple[str, str], Array] | None = None,
    start_step: int = 0,
    start_position: Position | None = None,
    task_fingerprint: str = "",
    progress: bool = True,
) -> TrainResult:
    """Train ``model`` in the directory ``run``, from its latest complete checkpoint if it has one.

    A run that was stopped goes on bit for bit as if it had not been. The model ends with the last weights; the best
    ones are in ``best_checkpoint(run)``.

    Args:
        evaluate: (model in evaluation mode, step) → metrics, ``config.best_metric`` among them.
        slots, start_step, start_position: what a new run takes over from the training it continues; a resumed run
            has its own.
        task_fingerprint: identity of the data; a run is not resumed on other data.

    Raises:
        TrainingError: no step is left, the checkpoint is of another model, seed or task, the loss is not finite,
            or the best metric is not measured.
        StorageError: another process trains in ``run``.
    """
    run.mkdir(parents=True, exist_ok=True)
    with directory_lock(run):
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        device = next(model.parameters()).device
        precision, why = resolve(config.precision, device)
        logger.info("computing in %s: %s", precision, why)
        optimizer = build_optimizer(model, config.optimizer)  # type: ignore[arg-type]
        latest = checkpoints.latest(run)
        if latest is None:
            start = State(start_step, start_position or Position(0, 0, 0), seed, task_fingerprint)
            _require_steps(start.step, config)
            if slots is not None:
                load_slots(optimizer, model, slots, start_step)
        else:
            _check_resumption(latest, config, seed, task_fingerprint, checkpoints.environment(device, precision))
            start = checkpoints.restore(latest, model, optimizer)
        # a run without any checkpoint has no records worth keeping, not even of its first step
        with Metrics(run, start.step if latest else start.step - 1) as metrics, ExitStack() as stack:
            loop = _Loop(
                run=run,
                model=model,
                optimizer=optimizer,
                config=config,
                evaluate=evaluate,
                metrics=metrics,
                precision=precision,
                start=start,
            )
            bar = stack.enter_context(Progress("training", config.steps - start.step, "steps")) if progress else None
            return loop.go(stream, first=latest is None, bar=bar)


def _require_steps(step: int, config: TrainingConfig) -> None:
    if step >= config.steps:
        raise TrainingError(
            "all steps are done already", expected=f"steps above {step}", found=config.steps, todo="raise steps"
        )


def _check_resumption(
    latest: Path, config: TrainingConfig, seed: int, task: str, environment: Mapping[str, str | int]
) -> None:
    """Refuse another seed or task before anything is changed; say what makes resuming not bit-equal."""
    saved = checkpoints.read_state(latest)
    _require_steps(saved.step, config)
    for name, was, now in (("seed", saved.seed, seed), ("task", saved.task_fingerprint, task)):
        if was != now:
            raise TrainingError(
                f"this run was begun with another {name}",
                where=latest,
                expected=was,
                found=now,
                todo=f"resume with the {name} it was begun with, or begin a new run",
            )
    for name, value in environment.items():
        if saved.environment.get(name) != value:
            logger.warning(
                "resuming will not be bit for bit: %s was %s, is %s", name, saved.environment.get(name), value
            )


class _Loop:
    def __init__(
        self,
        *,
        run: Path,
        model: nn.Module,
        optimizer: torch.optim.AdamW,
        config: TrainingConfig,
        evaluate: Evaluate,
        metrics: Metrics,
        precision: str,
        start: State,
    ) -> None:
        self.run, self.model, self.optimizer, self.config = run, model, optimizer, config
        self.evaluate, self.metrics, self.precision, self.start = evaluate, metrics, precision, start
        self.parameters = list(trainable(model).values())
        self.device = self.parameters[0].device
        self.step, self.position, self.best = start.step, start.position, start.best
        self.sums = dict(start.sums) or dict.fromkeys(("loss", "nll", "tokens", "updates"), 0.0)
        self.began = time.perf_counter()

    def go(self, stream: BatchStream, *, first: bool, bar: Progress | None) -> TrainResult:
        config = self.config
        if first:
            if config.evaluate_first:
                self._evaluate()
            self._save()
        batches = stream.iterate(self.position)
        self.model.train()
        while self.step < config.steps:
            began = time.perf_counter()
            loss, tokens, norm = self._update(batches)
            seconds = time.perf_counter() - began
            last = self.step == config.steps
            if last or self.step % config.log_every == 0:
                self._log(norm, tokens / seconds)
            improved = (last or self.step % config.evaluate_every == 0) and self._evaluate()
            if last or improved or self.step % config.checkpoint_every == 0:
                self._save()
            if bar is not None:
                bar.update(1, **{"loss": f"{loss:.3f}", "tok/s": f"{tokens / seconds:,.0f}"})
        history = read_metrics(self.run)
        best = self.best.step if self.best else None
        measured = [r for r in history if r["kind"] == "validation" and r["step"] == best]
        best_metrics = {k: v for k, v in measured[-1].items() if k not in ("step", "kind", "time")} if measured else {}
        return TrainResult(self.step, best, best_metrics, history, time.perf_counter() - self.began)

    def _update(self, batches: Iterator[tuple[Position, Batch]]) -> tuple[float, int, float]:
        """One update: (loss a token, target tokens, norm of the gradient before clipping)."""
        config, step, where = self.config, self.step + 1, self.position
        torch.manual_seed(step_seed(self.start.seed, step, rank()))
        parts = []
        for _ in range(config.accumulation):
            item = next(batches, None)
            if item is None:
                raise TrainingError("the data ended before the last step", where=f"step {step}, batch at {where}")
            self.position = item[0]
            parts.append(item[1])
        tokens = max(1, sum(int(part.target_lengths.sum()) for part in parts))
        loss_sum = nll_sum = 0.0
        for part in parts:
            with autocast(self.precision, self.device):
                loss = batch_loss(self.model, part, config.label_smoothing)
            (loss.loss / tokens).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.loss.item()
            nll_sum += loss.nll.item()
        norm = float(nn.utils.clip_grad_norm_(self.parameters, config.clip_norm or math.inf))
        for name, value in (("loss", loss_sum), ("gradient", norm)):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {name} is not finite",
                    where=f"step {step}, batch at {where}",
                    found=value,
                    todo="lower learning_rate or lengthen warmup; the run can go on from its latest checkpoint",
                )
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step = step
        for name, value in (("loss", loss_sum), ("nll", nll_sum), ("tokens", tokens), ("updates", 1)):
            self.sums[name] += value
        return loss_sum / tokens, tokens, norm

    def _learning_rate(self, step: int) -> float:
        return self.config.learning_rate * factor(self.config.schedule, step, self.config.steps)

    def _log(self, norm: float, speed: float) -> None:
        """A record over the updates since the last one."""
        tokens = self.sums["tokens"]
        fields = {
            "train/loss": self.sums["loss"] / tokens,
            "train/nll": self.sums["nll"] / tokens,
            "train/tokens": tokens,
            "train/gradient_norm": norm,
            "train/learning_rate": self._learning_rate(self.step),
            "train/epoch": self.position.epoch,
        }
        self.metrics.write(self.step, "train", fields, {"seconds": self._seconds(), "tokens_per_second": speed})
        self.sums = dict.fromkeys(self.sums, 0.0)

    def _evaluate(self) -> bool:
        """Measure, record, and say whether this is the best so far."""
        name = self.config.best_metric
        self.model.eval()
        began = time.perf_counter()
        with torch.no_grad():
            measured = self.evaluate(self.model, self.step)
        self.model.train()
        if name not in measured:
            raise TrainingError(
                "the best metric is not measured", where="best_metric", expected=sorted(measured), found=name
            )
        times = {"seconds": self._seconds(), "evaluation_seconds": time.perf_counter() - began}
        self.metrics.write(self.step, "validation", measured, times)
        value = float(measured[name])
        if not math.isfinite(value) or (self.best and not self._better(value, self.best.value)):
            return False
        self.best = Best(self.step, value)
        return True

    def _better(self, value: float, than: float) -> bool:
        return value < than if self.config.best_mode == "min" else value > than

    def _seconds(self) -> float:
        return time.perf_counter() - self.began

    def _save(self) -> None:
        self.metrics.sync()
        environment = checkpoints.environment(self.device, self.precision)
        checkpoints.save(
            self.run,
            self.model,
            self.optimizer,
            State(
                self.step,
                self.position,
                self.start.seed,
                self.start.task_fingerprint,
                self.best,
                self.sums,
                environment,
            ),
        )
        checkpoints.prune(self.run, self.config.keep_last, self.best)
