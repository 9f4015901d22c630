"""The family as others meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from warmstart.models.family import Dialect, Parameter
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.parameters import STAGES, parameters

_BEHAVIOUR = ("num_heads", "activation", "norm", "normalize_keys", "positions", "scale_embeddings")


@dataclass(frozen=True)
class TransformerFamily:
    """Encoder-decoder Transformer. Its stages have names but no order: encoder and decoder are two roads."""

    name: str = "transformer"
    revision: int = 1
    config_type: type[BaseModel] = TransformerConfig
    stages: tuple[str, ...] = STAGES
    order: tuple[str, ...] | None = None

    @property
    def vocabulary_sizes(self) -> Mapping[str, str]:
        return {"source": "source_vocab_size", "target": "target_vocab_size"}

    def parameters(self, config: TransformerConfig) -> tuple[Parameter, ...]:
        return parameters(config)

    def behaviour(self, config: TransformerConfig) -> dict[str, object]:
        return {key: getattr(config, key) for key in _BEHAVIOUR}

    def dialects(self) -> Sequence[Dialect]:
        from warmstart.models.transformer.dialects import CTranslate2Dialect, MarianDialect

        return (MarianDialect(), CTranslate2Dialect())

    def build(self, config: TransformerConfig) -> Any:
        from warmstart.models.transformer.module import Transformer

        return Transformer(config)
