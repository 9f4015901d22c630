"""The family as others meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from warmstart.checked import Config
from warmstart.errors import DialectError
from warmstart.lean import dataclass
from warmstart.models.encoder.config import EncoderConfig
from warmstart.models.encoder.parameters import STAGES, parameters
from warmstart.models.family import Dialect, Parameter

_BEHAVIOUR = ("num_heads", "activation", "layer_norm_epsilon")


@dataclass(frozen=True)
class EncoderFamily:
    """Encoder-only Transformer. It is converted; the native engine does not compute it yet."""

    name: str = "encoder"
    revision: int = 1
    config_type: type[Config] = EncoderConfig
    stages: tuple[str, ...] = STAGES
    order: tuple[str, ...] | None = STAGES

    @property
    def vocabulary_sizes(self) -> Mapping[str, str]:
        return {"text": "vocab_size"}

    def parameters(self, config: EncoderConfig) -> tuple[Parameter, ...]:
        return parameters(config)

    def behaviour(self, config: EncoderConfig) -> dict[str, object]:
        return {key: getattr(config, key) for key in _BEHAVIOUR}

    def dialects(self) -> Sequence[Dialect]:
        from warmstart.models.encoder.dialects import CTranslate2Dialect, TransformersDialect

        return (TransformersDialect(), CTranslate2Dialect())

    def build(self, config: EncoderConfig) -> Any:
        raise DialectError(
            "encoder-only models can be converted, but not run or trained by the native engine yet",
            todo="convert it to the framework that it is for (`warmstart convert ... --to ctranslate2`)",
        )
