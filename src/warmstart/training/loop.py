"""The loop."""

from __future__ import annotations

import hashlib
import logging
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from warmstart.data.plan import Position
from warmstart.errors import Interrupted, TrainingError
from warmstart.formats.checkpoint import Array
from warmstart.inference.device import device_name
from warmstart.storage.progress import Progress
from warmstart.training import state as checkpoints
from warmstart.training.learner import Gradient, Learner
from warmstart.training.metrics import read_metrics
from warmstart.training.nonfinite import write_record
from warmstart.training.output import NoOutput, Output
from warmstart.training.resumption import check_resumption, mark_environment, require_steps
from warmstart.training.signals import Signals
from warmstart.training.standing import Standing
from warmstart.training.state import State
from warmstart.training.terms import BatchStream, Describe, Evaluate, Measured, TrainResult, best_metrics

logger = logging.getLogger(__name__)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of all random numbers of one update: nothing else has to be kept for resuming."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8], "little") >> 1


def train(
    run: Path,
    learner: Learner,
    stream: BatchStream,
    *,
    seed: int,
    evaluate: Evaluate,
    slots: Mapping[tuple[str, str], Array] | None = None,
    start_step: int = 0,
    start_position: Position | None = None,
    start_schedule: Mapping[str, Any] | None = None,
    task_fingerprint: str = "",
    describe: Describe | None = None,
    written: Callable[[Path], None] = lambda checkpoint: None,
    resumed: Callable[[], None] = lambda: None,
    progress: bool = True,
) -> TrainResult:
    """Train ``learner`` in the directory ``run``, from its latest complete checkpoint if it has one.

    A run that was stopped goes on bit for bit as if it had not been. The learner ends with the last weights; the best
    ones are in ``best_checkpoint(run)``. The caller holds the directory's lock.

    With several ranks (``learner.ranks``) each calls this, and all end with the same weights and result: the batches of
    an update, a multiple of the ranks, are dealt out, and rank 0 evaluates and writes.

    Args:
        evaluate: (model in evaluation mode, step) → what was measured, ``config.best_metric`` among it.
        slots, start_step, start_position, start_schedule: what a new run takes over from the training it continues; a
            resumed run has its own.
        task_fingerprint: identity of the data; a run is not resumed on other data.
        describe: what to write down about a batch whose loss is not finite.
        written: is given the directory of each checkpoint when it is complete, in the thread that wrote it, by
            rank 0.
        resumed: is called by rank 0 when it is certain that a run with a checkpoint may go on.

    Raises:
        TrainingError: no step is left, the checkpoint is of another model, seed or task, the loss is not finite,
            or a metric that decides something is not measured.
        StorageError: something cannot be written; the latest checkpoint is as it was.
        Interrupted: SIGTERM, Ctrl-C or SIGHUP; the state is saved.
    """
    config, ranks = learner.config, learner.ranks
    run.mkdir(parents=True, exist_ok=True)
    device = device_name(learner.device)
    logger.info("computing on %s in %s: %s", device, learner.precision, learner.why_precision)
    environment = checkpoints.environment(learner.device, learner.precision, ranks.size, compiled=learner.compiled)
    latest = ranks.share(checkpoints.latest(run))
    if latest is None:
        start = State(
            start_step,
            start_position or Position(0, 0, 0),
            seed,
            task_fingerprint,
            schedule=start_schedule or {},
            environment=environment,
        )
        require_steps(start.step, config)
        if slots is not None:
            learner.load_slots(slots, start_step)
    else:
        saved = checkpoints.read_state(latest)
        check_resumption(latest, saved, config, seed, task_fingerprint)
        start = learner.restore(latest)
        if ranks.first:
            resumed()
        ranks.wait()  # nothing is written before all have read
        start = mark_environment(run, start, environment, write=ranks.first)
    with ExitStack() as stack:
        loop = _Loop(
            run=run,
            learner=learner,
            stream=stream,
            evaluate=evaluate,
            describe=describe,
            output=stack.enter_context(Output(run, start, written) if ranks.first else NoOutput()),
            start=start,
            begins=start_step,
            signals=stack.enter_context(Signals()),
            bar=stack.enter_context(Progress("training", config.steps - start.step, "steps")) if progress else None,
        )
        return loop.go(first=latest is None)


class _Stop(Exception):
    """The training ends here for a reason that is no error."""


class _Loop:
    def __init__(
        self,
        *,
        run: Path,
        learner: Learner,
        stream: BatchStream,
        evaluate: Evaluate,
        describe: Describe | None,
        output: Output,
        start: State,
        begins: int,
        signals: Signals,
        bar: Progress | None,
    ) -> None:
        self.run, self.learner, self.config, self.model = run, learner, learner.config, learner.model
        self.ranks, self.output = learner.ranks, output
        self.stream, self.evaluate, self.describe = stream, evaluate, describe
        self.unit, self.work = learner.objective.unit, learner.objective.work
        self.begins, self.signals, self.bar = begins, signals, bar
        self.began = self.saved_at = time.perf_counter()
        self._resume_at(start)

    def _resume_at(self, state: State) -> None:
        self.state, self.step, self.position = state, state.step, state.position
        self.standing = Standing(self.config, state)
        self.sums = dict.fromkeys(("loss", "nll", self.unit, "updates", "norm"), 0.0) | dict(state.sums)
        self.evaluated, self.skipped = state.evaluated, state.skipped
        self.speed = self.rate = 0.0
        stream, ranks = self.stream.reordered(state.order), self.ranks
        alone = ranks.size == 1
        self.batches = stream.iterate(state.position) if alone else stream.deal(state.position, ranks.rank, ranks.size)

    def go(self, *, first: bool) -> TrainResult:
        stopped = None
        try:
            if first and self.config.evaluate_first and self.config.evaluate_every is not None:
                self._evaluate()
            if first:
                self._save()
            else:
                self._make_up()
            if reason := self.standing.out_of_patience():
                raise _Stop(reason)
            self.model.train()
            while self.step < self.config.steps:
                if self._update():
                    self._boundary()
                else:
                    self._make_up()
        except _Stop as reason:
            stopped = str(reason)
        self.output.wait()
        history = self.ranks.share(read_metrics(self.run) if self.ranks.first else [])
        best = self.standing.best[0].step if self.standing.best else None
        return TrainResult(
            self.step, best, best_metrics(history, best), history, time.perf_counter() - self.began, stopped
        )

    def _make_up(self) -> None:
        """Evaluate where the checkpoint was written because somebody asked to stop before the evaluation."""
        if self.step not in (self.begins, self.evaluated) and self._due(self.config.evaluate_every):
            self._boundary(log=False)

    def _due(self, every: int | None) -> bool:
        if every is None:
            return False
        return self.step == self.config.steps or (self.step - self.config.intervals_from) % every == 0

    def _boundary(self, *, log: bool = True) -> None:
        """What is to be done between two updates: log, evaluate, save, stop."""
        config = self.config
        if log and self._due(config.log_every):
            self._log()
        self._stop_if_asked()
        improved = False
        if self._due(config.evaluate_every):
            try:
                improved = self._evaluate()
            except Interrupted:  # it is made again when the run goes on
                self._stop_if_asked()
        patience = self.standing.out_of_patience()
        minutes = config.checkpoint_minutes
        late = minutes is not None and time.perf_counter() - self.saved_at > 60 * minutes
        if patience or improved or late or self._due(config.checkpoint_every):
            self._save(final=patience is not None or self.step == config.steps)
        if patience:
            raise _Stop(patience)
        self.output.check()

    def _stop_if_asked(self) -> None:
        caught = self.ranks.signal(self.signals.caught)
        if caught is not None:
            self._save()
            self.output.wait()
            self.ranks.wait()  # whoever started the ranks may end all when the first one has ended
            raise Interrupted(caught, where=f"{self.run}, step {self.step}")

    def _update(self) -> bool:
        """One update; False if the run was rewound instead."""
        config, step, where = self.config, self.step + 1, self.position
        began = time.perf_counter()
        self._seed(step)
        parts: list[Any] = []
        for _ in range(config.accumulation):
            last = self.position
            item = next(self.batches, None)
            if item is None:
                raise TrainingError("the data ended before the last step", where=f"step {step}, batch at {where}")
            self.position = item[0]
            if item[1] is not None:  # it is this rank's
                parts.append(item[1])
        self.standing.before_update(step, last.epoch)
        self._reset_optimizer_if_due()
        self.rate = self.standing.rate(step)
        found = self.learner.gradient(parts, step, self.standing.plateaus)
        if found.finite:
            self.learner.apply(step, self.rate)
            self.sums["norm"] = found.norm
            for name, value in (("loss", found.loss), ("nll", found.nll), (self.unit, found.units), ("updates", 1)):
                self.sums[name] += value
        elif not self._not_finite(step, where, parts, found):
            return False
        self.step = step
        self.standing.after_update(step)
        self._reset_optimizer_if_due()
        self.speed = found.work / (time.perf_counter() - began)
        if self.bar is not None:
            pace = f"{self.work.replace('_', ' ')}/s"
            self.bar.update(1, **{"loss": f"{found.loss / found.units:.3f}", pace: f"{self.speed:,.0f}"})
        return True

    def _seed(self, step: int) -> None:
        seed = step_seed(self.state.seed, step, self.ranks.rank)
        if self.learner.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # asking for other devices takes a hundred times as long
        else:
            torch.manual_seed(seed)

    def _not_finite(self, step: int, where: Position, parts: Sequence[Any], found: Gradient) -> bool:
        """Write the batch down, and stop, leave the update out (True) or rewind (False)."""
        rule = self.config.nonfinite
        order = self.state.order
        name, path, causes = write_record(
            self.run, step, where, found, self.model, parts, self.describe, self.ranks, order
        )
        self.learner.forget()
        done = self.skipped if rule.action == "skip" else order
        if rule.action == "stop" or done >= rule.limit:
            more = "also with `training.nonfinite.action` skip or rewind"
            if rule.action != "stop":
                more = f"with a higher `training.nonfinite.limit` ({rule.limit} is used up)"
            raise TrainingError(
                f"the {name} is not finite",
                where=f"step {step}, batch at {where}, written to {path}",
                found=found.loss if name == "loss" else found.norm,
                todo="look at the batch, lower learning_rate or lengthen warmup; the run can go on from its latest "
                f"checkpoint, {more}",
                problems=causes,
            )
        logger.warning("step %d: the %s is not finite (%s): %s", step, name, path, rule.action)
        for cause in causes:
            logger.warning("step %d: %s (%s)", step, cause.what, cause.where)
        if rule.action == "skip":
            self.skipped += 1
            return True
        self._rewind()
        return False

    def _rewind(self) -> None:
        """Back to the latest checkpoint, and on from there in another order of the data."""
        self.output.wait()
        latest = self.ranks.share(checkpoints.latest(self.run))
        assert latest is not None  # the first one is written before the first update
        state = self.learner.restore(latest)
        after = state.step - self.config.intervals_from
        known = (self.begins, *(b.step for b in state.best))
        planned = state.step in known or after % self.config.checkpoint_every == 0
        if not planned:  # a signal or the clock had it written
            logger.warning("step %d has a checkpoint by chance: this run cannot be repeated exactly", state.step)
        if self.bar is not None:
            self.bar.update(state.step - self.step)
        self._resume_at(
            replace(
                state,
                position=Position(state.position.epoch, state.position.window, 0),
                order=self.state.order + 1,
                environment=self.state.environment,
                exact=self.state.exact and planned,
            )
        )
        self.output.rewind(state)

    def _log(self) -> None:
        """A record over the updates since the last one; without numbers where all of them were left out."""
        made, units = self.sums["updates"] > 0, max(1.0, self.sums[self.unit])
        fields = {
            "train/loss": self.sums["loss"] / units if made else math.nan,
            "train/nll": self.sums["nll"] / units if made else math.nan,
            f"train/{self.unit}": self.sums[self.unit],
            "train/gradient_norm": self.sums["norm"] if made else math.nan,
            "train/learning_rate": self.rate,
            "train/epoch": self.position.epoch,
        }
        if self.skipped:
            fields["train/skipped"] = self.skipped
        times = {"seconds": self._seconds(), f"{self.work}_per_second": self.speed}
        self.output.measured(self.step, "train", fields, times)
        self.sums = dict.fromkeys(self.sums, 0.0)

    def _evaluate(self) -> bool:
        """Measure, record, and say whether this is one of the best so far."""
        self.learner.require_same_weights(self.step)
        began = time.perf_counter()
        found: Any = self.ranks.share(self._measure() if self.ranks.first else None)
        if not isinstance(found, Measured):
            raise Interrupted(found, where=f"{self.run}, step {self.step}")
        times = {"seconds": self._seconds(), "evaluation_seconds": time.perf_counter() - began}
        reached = self.standing.observe(self.step, found.metrics)
        self.output.measured(self.step, "validation", found.metrics, times)
        self.output.sampled(self.step, found.samples)
        self.evaluated = self.step
        self._reset_optimizer_if_due()
        if reached:
            self._reach_plateau()
        return any(b.step == self.step for b in self.standing.best)

    def _measure(self) -> Measured | signal.Signals:
        """What the evaluation measures, or the signal that ended it."""
        self.model.eval()
        try:
            with torch.no_grad(), self.learner.evaluated(), self.signals.raising():
                return self.evaluate(self.model, self.step)
        except Interrupted:
            if self.signals.caught is None:
                raise
            return self.signals.caught
        finally:
            self.model.train()

    def _reach_plateau(self) -> None:
        rule, best, plateaus = self.config.plateau, self.standing.best, self.standing.plateaus
        assert rule is not None
        rate = self.standing.rate(self.step + 1)
        logger.info("step %d: plateau %d of %s, learning rate %g", self.step, plateaus, rule.metric, rate)
        if rule.reload_best and best and best[0].step != self.step:
            self.output.wait()
            self.ranks.wait()
            self.learner.restore(checkpoints.checkpoint_path(self.run, best[0].step))

    def _reset_optimizer_if_due(self) -> None:
        if self.standing.take_reset():
            logger.info("step %d: the optimizer begins afresh, as the schedule says", self.step)
            self.learner.reset_optimizer()

    def _seconds(self) -> float:
        return time.perf_counter() - self.began

    def _save(self, *, final: bool = False) -> None:
        """Write a checkpoint in the background."""
        state = replace(
            self.state,
            step=self.step,
            position=self.position,
            sums=dict(self.sums),  # this one goes on while the checkpoint is written
            evaluated=self.evaluated,
            skipped=self.skipped,
            **self.standing.fields(),
        )
        self.saved_at = time.perf_counter()
        self.output.save(self.learner, state, self.config.keep_last, final=final)
