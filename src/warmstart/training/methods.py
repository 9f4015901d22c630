"""Schedules of the learning rate and optimizers, as they are set; their formulas are in ``schedule`` and
``optimizer``."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(gt=0)]
Number = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Factor = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Mode = Literal["min", "max"]


class Frozen(BaseModel):
    """What is set once: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def refuse(self, why: str, *keys: str) -> None:
        """Raises ``ValueError``: which of ``keys`` were set, though they change nothing ``why``."""
        if said := [key for key in keys if key in self.model_fields_set]:
            raise ValueError(f"{', '.join(said)} changes nothing {why}: remove {'it' if len(said) == 1 else 'them'}")


# --- schedules of the learning rate ---------------------------------------------------------------------------------


class InverseSqrt(Frozen):
    """Linear warm-up to the peak, then √(warmup / step)."""

    type: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup: Count


class Constant(Frozen):
    """Linear warm-up, then the peak."""

    type: Literal["constant"] = "constant"
    warmup: Number = 0


class Linear(Frozen):
    """Linear warm-up, then a straight line to ``end_factor`` times the peak at the last step."""

    type: Literal["linear"] = "linear"
    warmup: Number = 0
    end_factor: Factor = 0.0


class Cosine(Frozen):
    """Linear warm-up, then half a cosine to ``end_factor`` times the peak at the last step."""

    type: Literal["cosine"] = "cosine"
    warmup: Number = 0
    end_factor: Factor = 0.0


class Marian(Frozen):
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


class OfSource(Frozen):
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


class T5X(Frozen):
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
            if not readers & set(self.names):
                self.refuse(f"without {' or '.join(sorted(readers))}", key)
        return self


Schedule = Annotated[InverseSqrt | Constant | Linear | Cosine | Marian | OfSource | T5X, Field(discriminator="type")]


# --- optimizers -----------------------------------------------------------------------------------------------------


class Adam(Frozen):
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


class Adafactor(Frozen):
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


class AdaBelief(Frozen):
    """AdaBelief (Zhuang et al. 2020), with decoupled weight decay on matrices."""

    type: Literal["adabelief"] = "adabelief"
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: Positive = 1e-16
    weight_decay: NotNegative = 0.0


class SGD(Frozen):
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
