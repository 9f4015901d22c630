"""What may be set about a training."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from warmstart.keys import Adjustable, Identity
from warmstart.sources.config import Source
from warmstart.training.methods import (
    Adam,
    Count,
    Factor,
    Frozen,
    Marian,
    Mode,
    NotNegative,
    Number,
    OptimizerConfig,
    Positive,
    Schedule,
    Share,
)


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("a device is cpu, cuda, cuda:N or auto")
    return name


Device = Annotated[str, AfterValidator(_device)]


# --- what happens when --------------------------------------------------------------------------------------------


class Release(Frozen):
    """When a frozen group is trained: from the update after ``step``, or after ``plateaus`` plateaus."""

    step: Count | None = None
    plateaus: Count | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.step is None) == (self.plateaus is None):
            raise ValueError("say either step or plateaus")
        return self


class Group(Frozen):
    """Parameters that are trained in another way: those whose name matches one of ``parameters`` (patterns such as
    ``encoder.**``) or whose stage is one of ``stages``. A parameter belongs to the first group that has it.

    ``learning_rate`` multiplies the schedule; ``freeze`` holds the parameters for ever, or until a release.
    """

    parameters: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    learning_rate: NotNegative = 1.0
    weight_decay: NotNegative | None = None
    freeze: bool | Release = False

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.parameters and not self.stages:
            raise ValueError("a group names parameters or stages")
        if self.freeze is True:
            self.refuse("where freeze is true", "learning_rate", "weight_decay")
        return self


class Average(Frozen):
    """Exponential moving average of the weights, evaluated and shipped in their place.

    ``a ← d·a + (1 - d)·w`` after each update, with d = min(``decay``, (t + 1) / (t + 10)) where t updates were made
    before it, as Marian's ``--exponential-smoothing`` (1 - ``decay``) has it; without ``warmup`` d is ``decay`` always.
    """

    decay: Share = 0.9999
    warmup: bool = True


class LoRA(Frozen):
    """Low-rank adapters (Hu et al. 2021): W + (``alpha`` / ``rank``)·B·A for the linear layers that match ``modules``
    (patterns such as ``**.query``). Only the adapters are trained, and parameters that a group names."""

    modules: tuple[str, ...] = ("**.query", "**.value")
    rank: Count = 8
    alpha: Positive = 16.0


class Distillation(Frozen):
    """Learning from ``teachers`` (an ensemble if several) that share the student's vocabularies.

    ``word``: (1 - ``weight``)·cross entropy + ``weight``·``temperature``²·KL(teacher ‖ student), both softened by the
    temperature (Hinton et al. 2015; Kim and Rush 2016 §3.1). ``sequence``: the training targets are the teachers' beam
    search outputs (Kim and Rush 2016 §3.2), decoded once before the first update.
    """

    teachers: Annotated[tuple[Source, ...], Field(min_length=1)]
    level: Literal["word", "sequence"] = "word"
    weight: Factor = 1.0
    temperature: Positive = 1.0
    beam_size: Count = 4

    @model_validator(mode="after")
    def _used(self) -> Self:
        unread = {"word": ("beam_size",), "sequence": ("weight", "temperature")}[self.level]
        self.refuse(f"at the level of {self.level}s", *unread)
        return self


class Patience(Frozen):
    """A metric that stops getting better: ``patience`` evaluations without an improvement of ``min_change``."""

    metric: str = "validation/loss"
    mode: Mode = "min"
    patience: Count
    min_change: NotNegative = 0.0


class Plateau(Patience):
    """At each plateau the learning rate is multiplied by ``factor``, and with ``reload_best`` weights and optimizer go
    back to the best checkpoint's; at the latest with ``limit`` plateaus no more is done."""

    factor: Factor = 0.5
    reload_best: bool = False
    limit: Count | None = None


class Nonfinite(Frozen):
    """What to do about a loss or gradient that is not finite: ``stop``; ``skip`` the update, at most ``limit`` times
    in all; or ``rewind`` to the latest checkpoint and go on with another data order, at most ``limit`` times."""

    action: Literal["stop", "skip", "rewind"] = "stop"
    limit: Count = 10

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.action == "stop":
            self.refuse("where the action is stop", "limit")
        return self


_OF_EVALUATIONS = (
    *("evaluate_first", "samples", "best_metric", "best_mode", "keep_best"),
    *("early_stopping", "plateau"),
)


class TrainingConfig(Frozen):
    """How a model is trained.

    ``steps`` counts updates from step 0 of the optimizer, so a training that continues another one counts on.
    ``accumulation`` batches make one update, with any number of processes that divides it. The summed loss is divided
    by ``loss_normalizer``: the target ``tokens`` or the ``sequences`` of the update, or a number; by default tokens for
    text and sequences for speech.
    ``clip_norm`` bounds the gradient's global L2 norm.
    ``best_metric`` is one of the names that evaluation returns; null: no evaluation is the best, and the last weights
    are shipped. ``evaluate_every: null`` trains without evaluations, and without validation splits. Checkpoints are
    written every ``checkpoint_every`` steps and ``checkpoint_minutes``; the last ``keep_last``, the ``keep_best`` by
    ``best_metric`` and those that hold a file named ``PINNED`` are kept. ``evaluate_first`` evaluates before the first
    update too. ``evaluate_every``, ``checkpoint_every`` and ``log_every`` count from step ``intervals_from``, so that a
    training that begins at any step can do as much after each epoch. ``samples`` outputs of each validation split are
    written down at each evaluation.
    ``device``: ``cpu``, ``cuda`` (with several processes each has its own), ``cuda:N``, or ``auto``: a GPU where torch
    sees one. Of a GPU alone: ``deterministic`` computes what can be repeated bit for bit, and ``compile`` has torch
    compile the model's layers.
    """

    steps: Adjustable[Count]
    learning_rate: Adjustable[Positive]
    schedule: Adjustable[Schedule]
    optimizer: Identity[OptimizerConfig] = Adam()
    groups: Identity[tuple[Group, ...]] = ()
    average: Identity[Average | None] = None
    lora: Identity[LoRA | None] = None
    distillation: Identity[Distillation | None] = None
    label_smoothing: Identity[Share] = 0.1
    z_loss: Identity[NotNegative] = 0.0
    loss_normalizer: Identity[Literal["tokens", "sequences"] | Positive | None] = None
    clip_norm: Adjustable[Positive | None] = 1.0
    accumulation: Identity[Count] = 1
    precision: Identity[Literal["auto", "float32", "bfloat16"]] = "auto"
    nonfinite: Adjustable[Nonfinite] = Nonfinite()
    evaluate_every: Adjustable[Count | None]
    evaluate_first: Adjustable[bool] = True
    samples: Adjustable[Number] = 5
    best_metric: Identity[str | None] = "validation/loss"
    best_mode: Identity[Mode] = "min"
    early_stopping: Adjustable[Patience | None] = None
    plateau: Adjustable[Plateau | None] = None
    checkpoint_every: Adjustable[Count]
    checkpoint_minutes: Adjustable[Positive | None] = None
    keep_last: Adjustable[Count] = 2
    keep_best: Adjustable[Count] = 1
    log_every: Adjustable[Count] = 50
    intervals_from: Adjustable[Number] = 0
    threads: Adjustable[Count | None] = None
    device: Adjustable[Device] = "auto"
    deterministic: Adjustable[bool] = True
    compile: Adjustable[bool] = False

    @model_validator(mode="after")
    def _on_a_gpu(self) -> Self:
        said = [key for key, value in (("compile", True), ("deterministic", False)) if getattr(self, key) is value]
        if said and self.device == "cpu":
            raise ValueError(f"{', '.join(said)} changes nothing on a CPU: remove it")
        return self

    @model_validator(mode="after")
    def _evaluated(self) -> Self:
        if self.evaluate_every is None:
            said = [key for key in _OF_EVALUATIONS if key in self.model_fields_set]
            if unread := [key for key in said if getattr(self, key) not in (None, False)]:
                raise ValueError(f"{', '.join(unread)} changes nothing without evaluations: remove it")
            if isinstance(self.schedule, Marian) and self.schedule.stalls:
                raise ValueError("schedule.decay_strategy changes nothing without evaluations: take another one")
        if self.best_metric is None and self.plateau is not None and self.plateau.reload_best:
            raise ValueError("plateau.reload_best needs a best_metric")
        if self.best_metric is None:
            self.refuse("without a best_metric", "best_mode", "keep_best")
        for number, group in enumerate(self.groups):
            if isinstance(group.freeze, Release) and group.freeze.plateaus is not None and self.plateau is None:
                raise ValueError(f"groups.{number}.freeze.plateaus is never reached without `plateau`: add it")
        return self

    @property
    def deciding_metrics(self) -> dict[str, str]:
        """Key → name of each metric that decides something."""
        rules = {"early_stopping": self.early_stopping, "plateau": self.plateau}
        found = {f"{key}.metric": rule.metric for key, rule in rules.items() if rule is not None}
        if self.best_metric is not None and self.evaluate_every is not None:
            found = {"best_metric": self.best_metric, **found}
        if isinstance(self.schedule, Marian) and self.schedule.stalls:
            found["schedule.metric"] = self.schedule.metric
        return found

    @model_validator(mode="after")
    def _used(self) -> Self:
        distillation = self.distillation
        if distillation and distillation.level == "word" and distillation.weight == 1.0:
            self.refuse("where the teacher has the whole weight", "label_smoothing", "z_loss")
        return self
