"""The family as others meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from warmstart.checked import Config
from warmstart.errors import DialectError
from warmstart.lean import dataclass
from warmstart.models.family import Dialect, Parameter
from warmstart.models.whisper.config import WhisperConfig
from warmstart.models.whisper.parameters import STAGES, parameters

_BEHAVIOUR = (*("encoder_heads", "decoder_heads", "suppress_ids", "suppress_ids_begin", "lang_ids", "alignment_heads"),)


@dataclass(frozen=True)
class WhisperFamily:
    """Whisper. It is converted; the native engine does not compute it yet."""

    name: str = "whisper"
    revision: int = 1
    config_type: type[Config] = WhisperConfig
    stages: tuple[str, ...] = STAGES
    order: tuple[str, ...] | None = None

    @property
    def vocabulary_sizes(self) -> Mapping[str, str]:
        return {"text": "vocab_size"}

    def parameters(self, config: WhisperConfig) -> tuple[Parameter, ...]:
        return parameters(config)

    def behaviour(self, config: WhisperConfig) -> dict[str, object]:
        return {key: getattr(config, key) for key in _BEHAVIOUR}

    def dialects(self) -> Sequence[Dialect]:
        from warmstart.models.whisper.dialects import CTranslate2Dialect, TransformersDialect

        return (TransformersDialect(), CTranslate2Dialect())

    def build(self, config: WhisperConfig) -> Any:
        raise DialectError(
            "Whisper models can be converted, but not run or trained by the native engine yet",
            todo="convert it to the framework that it is for (`warmstart convert ... --to ctranslate2`)",
        )
