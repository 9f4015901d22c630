"""The family as others meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from warmstart.checked import Config
from warmstart.errors import DialectError
from warmstart.lean import dataclass
from warmstart.models.family import Dialect, Parameter
from warmstart.models.lazily import Later, Lazily
from warmstart.models.t5.config import T5Config
from warmstart.models.t5.parameters import STAGES, VOCABULARY, parameters

_BEHAVIOUR = (
    *("num_heads", "d_kv", "activation", "gated", "scale_outputs", "position_bias", "num_buckets", "max_distance"),
    "layer_norm_epsilon",
)

_HERE = "warmstart.models.t5.dialects"
_T5X = (f"{_HERE}.t5x", "T5XDialect", ("t5x", "orbax", "flax"))
DIALECTS: Lazily[Dialect] = Lazily(
    Later("t5x", *_T5X),
    Later("t5x-scanned", *_T5X, {"name": "t5x-scanned", "scanned": True, "split": True}),
    Later("t5x-split", *_T5X, {"name": "t5x-split", "split": True, "layout": ""}),
    Later("t5x-scanned-joined", *_T5X, {"name": "t5x-scanned-joined", "scanned": True, "layout": ""}),
    Later("mesh-tensorflow", f"{_HERE}.mesh_tensorflow", "MeshTensorFlowDialect", ("tensorflow",)),
    Later("transformers", f"{_HERE}.transformers", "TransformersDialect"),
    Later("ctranslate2", f"{_HERE}.ctranslate2", "CTranslate2Dialect", ("ctranslate2",)),
)


@dataclass(frozen=True)
class T5Family:
    """T5, T5 1.1, mT5, umT5, ByT5. Its stages have names but no order: encoder and decoder are two roads."""

    name: str = "t5"
    revision: int = 1
    config_type: type[Config] = T5Config
    stages: tuple[str, ...] = STAGES
    order: tuple[str, ...] | None = None

    @property
    def vocabulary_sizes(self) -> Mapping[str, str]:
        return {VOCABULARY: "vocab_size"}

    def parameters(self, config: T5Config) -> tuple[Parameter, ...]:
        return parameters(config)

    def behaviour(self, config: T5Config) -> dict[str, object]:
        return {key: getattr(config, key) for key in _BEHAVIOUR}

    def dialects(self) -> Sequence[Dialect]:
        return DIALECTS

    def build(self, config: T5Config) -> Any:
        raise DialectError(
            "models of T5 can be converted, but not run or trained by the native engine yet",
            todo="convert it to the framework that it is for (`warmstart convert ... --to transformers`)",
        )
