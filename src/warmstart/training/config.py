"""What may be set about a training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(gt=0)]
Factor = Annotated[float, Field(ge=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InverseSqrt(_Frozen):
    """Linear warm-up to the peak, then √(warmup / step)."""

    type: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup: Count


class Constant(_Frozen):
    """Linear warm-up, then the peak."""

    type: Literal["constant"] = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0


class Linear(_Frozen):
    """Linear warm-up, then a straight line to ``end_factor`` times the peak at the last step."""

    type: Literal["linear"] = "linear"
    warmup: Annotated[int, Field(ge=0)] = 0
    end_factor: Factor = 0.0


class Cosine(_Frozen):
    """Linear warm-up, then half a cosine to ``end_factor`` times the peak at the last step."""

    type: Literal["cosine"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 0
    end_factor: Factor = 0.0


Schedule = Annotated[InverseSqrt | Constant | Linear | Cosine, Field(discriminator="type")]


class OptimizerConfig(_Frozen):
    """AdamW (Loshchilov and Hutter 2019); without weight decay it is Adam. Decay concerns matrices only."""

    type: Literal["adamw"] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    epsilon: Annotated[float, Field(gt=0.0)] = 1e-9
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0


class TrainingConfig(_Frozen):
    """How a model is trained.

    ``steps`` counts updates from step 0 of the optimizer, so a training that continues another one counts on.
    ``accumulation`` batches make one update. ``clip_norm`` bounds the gradient's global L2 norm. ``best_metric`` is
    one of the names that evaluation returns. The last ``keep_last`` checkpoints and the best one are kept.
    ``evaluate_first`` evaluates before the first update too.
    """

    steps: Count
    learning_rate: Annotated[float, Field(gt=0.0)]
    schedule: Schedule
    optimizer: OptimizerConfig = OptimizerConfig()
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    clip_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    accumulation: Count = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    evaluate_every: Count
    evaluate_first: bool = True
    checkpoint_every: Count
    keep_last: Count = 2
    log_every: Count = 50
    best_metric: str = "validation/loss"
    best_mode: Literal["min", "max"] = "min"
    threads: Count | None = None
