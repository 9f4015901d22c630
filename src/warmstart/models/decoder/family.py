"""The family as others meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from warmstart.checked import Config
from warmstart.errors import DialectError
from warmstart.lean import dataclass
from warmstart.models.decoder.config import DecoderConfig
from warmstart.models.decoder.parameters import STAGES, parameters
from warmstart.models.family import Dialect, Parameter

_SHAPES_AND_RECORDS = (
    *("architecture", "original", "vocab_size", "d_model", "num_layers", "d_ff", "embedding_size", "max_positions"),
    *("position_offset", "tied_output", "rotary_pairs", "relative_tables"),
)


@dataclass(frozen=True)
class DecoderFamily:
    """Decoder-only Transformer. It is converted; the native engine does not compute it yet."""

    name: str = "decoder"
    revision: int = 4  # 2: positions: sinusoidal; 3: rotary_pairs; 4: positions: relative
    config_type: type[Config] = DecoderConfig
    stages: tuple[str, ...] = STAGES
    order: tuple[str, ...] | None = STAGES

    @property
    def vocabulary_sizes(self) -> Mapping[str, str]:
        return {"text": "vocab_size"}

    def parameters(self, config: DecoderConfig) -> tuple[Parameter, ...]:
        return parameters(config)

    def behaviour(self, config: DecoderConfig) -> dict[str, object]:
        return {key: getattr(config, key) for key in config.model_fields if key not in _SHAPES_AND_RECORDS}

    def dialects(self) -> Sequence[Dialect]:
        from warmstart.models.decoder import dialects as d

        return (
            d.TransformersDialect(),
            d.CTranslate2Dialect(),
            d.OpenAIDialect(),
            d.EoleDialect(),
            d.OpenNMTPyDialect(),
            d.OpenNMTTFDialect(),
        )

    def build(self, config: DecoderConfig) -> Any:
        raise DialectError(
            "decoder-only models can be converted, but not run or trained by the native engine yet",
            todo="convert it to the framework that it is for (`warmstart convert ... --to ctranslate2`)",
        )
