"""What may be set about a training."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from warmstart.keys import Adjustable, Identity
from warmstart.sources.config import Source

Count = Annotated[int, Field(gt=0)]
Number = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Factor = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Mode = Literal["min", "max"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# --- schedules of the learning rate ---------------------------------------------------------------------------------


class InverseSqrt(_Frozen):
    """Linear warm-up to the peak, then √(warmup / step)."""

    type: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup: Count


class Constant(_Frozen):
    """Linear warm-up, then the peak."""

    type: Literal["constant"] = "constant"
    warmup: Number = 0


class Linear(_Frozen):
    """Linear warm-up, then a straight line to ``end_factor`` times the peak at the last step."""

    type: Literal["linear"] = "linear"
    warmup: Number = 0
    end_factor: Factor = 0.0


class Cosine(_Frozen):
    """Linear warm-up, then half a cosine to ``end_factor`` times the peak at the last step."""

    type: Literal["cosine"] = "cosine"
    warmup: Number = 0
    end_factor: Factor = 0.0


class Marian(_Frozen):
    """Marian's schedule, by its options: ``--lr-warmup`` (``-start-rate``, ``-cycle``, ``-at-reload``),
    ``--lr-decay-inv-sqrt N [START]``, and ``--lr-decay`` with its strategy, start, freq, ``repeat-warmup`` and
    ``reset-optimizer``; see ``training.marian``.

    ``decay_start`` has two numbers for the strategies that combine two. Evaluations stall by ``metric``, ``mode`` and
    ``min_change`` (Marian's first ``--valid-metrics`` and ``--early-stopping-epsilon``). ``warmup_at_reload``
    concerns a run that continues another one; going on with the same run is no reload.
    """

    type: Literal["marian"] = "marian"
    warmup: Number = 0
    warmup_start_rate: NotNegative = 0.0
    warmup_cycle: bool = False
    warmup_at_reload: bool = False
    inv_sqrt: Number = 0
    inv_sqrt_start: Number | None = None
    decay: Factor = 0.0
    decay_strategy: Literal["epoch", "batches", "stalled", "epoch+batches", "epoch+stalled"] = "epoch"
    decay_start: Number | tuple[Number, Number] = 1
    decay_every: Count = 50_000
    decay_repeat_warmup: bool = False
    decay_reset_optimizer: bool = False
    metric: str = "validation/loss"
    mode: Mode = "min"
    min_change: NotNegative = 0.0

    @property
    def starts(self) -> tuple[int, int]:
        """``decay_start``; 0, which is never reached, stands for a second one that there is not."""
        return self.decay_start if isinstance(self.decay_start, tuple) else (self.decay_start, 0)

    @property
    def stalls(self) -> bool:
        """Whether evaluations that do not improve ``metric`` count."""
        return self.decay > 0.0 and "stalled" in self.decay_strategy

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if ("+" in self.decay_strategy) != isinstance(self.decay_start, tuple):
            raise ValueError(f"decay_start of the strategy {self.decay_strategy} has a number for each of its parts")
        needs = [(k, "decay", self.decay > 0.0) for k in ("decay_repeat_warmup", "decay_reset_optimizer")]
        needs += [(k, "warmup", self.warmup > 0) for k in ("decay_repeat_warmup", "warmup_cycle", "warmup_at_reload")]
        needs += [(k, "a decay by stalled evaluations", self.stalls) for k in ("metric", "mode", "min_change")]
        for key, other, there in needs:
            if getattr(self, key) != type(self).model_fields[key].default and not there:
                raise ValueError(f"{key} changes nothing without {other}: remove it")
        return self


class OfSource(_Frozen):
    """The schedule that the source's options say: a Marian model's, from the YAML file beside it (``--lr-…``).

    ``metric`` and ``mode`` are what evaluations stall by, where they matter: Marian's have other names.
    """

    type: Literal["source"] = "source"
    metric: str = "validation/loss"
    mode: Mode = "min"


FACTORS = (
    "constant",
    "linear_warmup",
    "linear_decay",
    "rsqrt_decay",
    "rsqrt_normalized_decay",
    "decay_every",
    "cosine_decay",
)

_READ_BY = {  # keys of T5X's schedule → the factors that read them
    "warmup_steps": {"linear_warmup", "linear_decay", "rsqrt_decay", "rsqrt_normalized_decay", "cosine_decay"},
    "decay_factor": {"linear_decay", "decay_every"},
    "steps_per_decay": {"decay_every"},
    "steps_per_cycle": {"cosine_decay"},
}


class T5X(_Frozen):
    """T5X's ``create_learning_rate_scheduler``: ``factors`` multiplied, for instance ``constant * linear_warmup *
    rsqrt_decay``, where ``constant`` is ``training.learning_rate``."""

    type: Literal["t5x"] = "t5x"
    factors: str = "constant * linear_warmup * rsqrt_decay"
    warmup_steps: Count = 1000
    decay_factor: Positive = 0.5
    steps_per_decay: Count = 20_000
    steps_per_cycle: Count = 100_000
    step_offset: Number = 0
    min_learning_rate: NotNegative = 1e-8

    @property
    def names(self) -> list[str]:
        """The factors, one by one."""
        return [name.strip() for name in self.factors.split("*")]

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.names:
            if name not in FACTORS:
                near = get_close_matches(name, FACTORS, n=1)
                raise ValueError(
                    f"there is no factor {name!r}; "
                    + (f"did you mean {near[0]}?" if near else f"there are {', '.join(FACTORS)}")
                )
        for key, readers in _READ_BY.items():
            if key in self.model_fields_set and not readers & set(self.names):
                raise ValueError(f"{key} changes nothing without {' or '.join(sorted(readers))}: remove it")
        return self


Schedule = Annotated[InverseSqrt | Constant | Linear | Cosine | Marian | OfSource | T5X, Field(discriminator="type")]


# --- optimizers -----------------------------------------------------------------------------------------------------


class Adam(_Frozen):
    """Adam (Kingma and Ba 2015); ``adamw`` decouples the weight decay (Loshchilov and Hutter 2019), which concerns
    matrices only.

    ``epsilon_rule``: ``torch`` and ``marian`` add ε to the bias-corrected √v̂, ``tensorflow`` to √v as it is stored
    ("epsilon hat").
    """

    type: Literal["adam", "adamw"] = "adamw"
    betas: tuple[Share, Share] = (0.9, 0.98)
    epsilon: Positive = 1e-9
    epsilon_rule: Literal["torch", "marian", "tensorflow"] = "torch"
    weight_decay: NotNegative = 0.0


class Adafactor(_Frozen):
    """Adafactor (Shazeer and Stern 2018) with T5X's numbers and defaults; see ``training.adafactor``."""

    type: Literal["adafactor"] = "adafactor"
    factored: bool = True
    multiply_by_parameter_scale: bool = True
    beta1: Share | None = None
    decay_rate: Share = 0.8
    step_offset: Number = 0
    clipping_threshold: Positive | None = 1.0
    weight_decay_rate: Positive | None = None
    min_dim_size_to_factor: Count = 128
    epsilon1: Positive = 1e-30
    epsilon2: Positive = 1e-3


class AdaBelief(_Frozen):
    """AdaBelief (Zhuang et al. 2020), with decoupled weight decay on matrices."""

    type: Literal["adabelief"] = "adabelief"
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: Positive = 1e-16
    weight_decay: NotNegative = 0.0


class SGD(_Frozen):
    """Stochastic gradient descent; ``momentum`` as torch defines it."""

    type: Literal["sgd"] = "sgd"
    momentum: Share = 0.0
    nesterov: bool = False
    weight_decay: NotNegative = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov changes nothing without momentum")
        return self


OptimizerConfig = Annotated[Adam | Adafactor | AdaBelief | SGD, Field(discriminator="type")]


# --- what happens when --------------------------------------------------------------------------------------------


class Release(_Frozen):
    """When a frozen group is trained: from the update after ``step``, or after ``plateaus`` plateaus."""

    step: Count | None = None
    plateaus: Count | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.step is None) == (self.plateaus is None):
            raise ValueError("say either step or plateaus")
        return self


class Group(_Frozen):
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
        if self.freeze is True and (self.learning_rate != 1.0 or self.weight_decay is not None):
            raise ValueError("learning_rate and weight_decay change nothing where freeze is true: remove them")
        return self


class Average(_Frozen):
    """Exponential moving average of the weights, evaluated and shipped in their place.

    ``a ← d·a + (1 - d)·w`` after each update, with d = min(``decay``, (t + 1) / (t + 10)) where t updates were made
    before it, as Marian's ``--exponential-smoothing`` (1 - ``decay``) has it; without ``warmup`` d is ``decay`` always.
    """

    decay: Share = 0.9999
    warmup: bool = True


class LoRA(_Frozen):
    """Low-rank adapters (Hu et al. 2021): W + (``alpha`` / ``rank``)·B·A for the linear layers that match ``modules``
    (patterns such as ``**.query``). Only the adapters are trained, and parameters that a group names."""

    modules: tuple[str, ...] = ("**.query", "**.value")
    rank: Count = 8
    alpha: Positive = 16.0


class Distillation(_Frozen):
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
        unused = {"word": ("beam_size",), "sequence": ("weight", "temperature")}[self.level]
        for key in unused:
            if key in self.model_fields_set:
                raise ValueError(f"{key} changes nothing at the level of {self.level}s: remove it")
        return self


class Patience(_Frozen):
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


class Nonfinite(_Frozen):
    """What to do about a loss or gradient that is not finite: ``stop``; ``skip`` the update, at most ``limit`` times
    in all; or ``rewind`` to the latest checkpoint and go on with another data order, at most ``limit`` times."""

    action: Literal["stop", "skip", "rewind"] = "stop"
    limit: Count = 10

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.action == "stop" and "limit" in self.model_fields_set:
            raise ValueError("limit changes nothing where the action is stop: remove it")
        return self


_OF_EVALUATIONS = (
    *("evaluate_first", "samples", "best_metric", "best_mode", "keep_best"),
    *("early_stopping", "plateau"),
)


class TrainingConfig(_Frozen):
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
    update too. ``samples`` outputs of each validation split are written down at each evaluation.
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
        if self.best_metric is None and (
            unread := [k for k in ("best_mode", "keep_best") if k in self.model_fields_set]
        ):
            raise ValueError(f"{', '.join(unread)} changes nothing without a best_metric: remove it")
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
            for key in ("label_smoothing", "z_loss"):
                if key in self.model_fields_set:
                    raise ValueError(f"{key} changes nothing where the teacher has the whole weight: remove it")
        return self
