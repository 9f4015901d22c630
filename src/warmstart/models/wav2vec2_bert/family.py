"""The family as others meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from warmstart.checked import Config
from warmstart.errors import DialectError
from warmstart.lean import dataclass
from warmstart.models.family import Dialect, Parameter
from warmstart.models.wav2vec2_bert.config import Wav2Vec2BertConfig
from warmstart.models.wav2vec2_bert.parameters import STAGES, parameters

_BEHAVIOUR = ("num_heads",)


@dataclass(frozen=True)
class Wav2Vec2BertFamily:
    """wav2vec2-BERT. It is converted; the native engine does not compute it yet."""

    name: str = "wav2vec2_bert"
    revision: int = 1
    config_type: type[Config] = Wav2Vec2BertConfig
    stages: tuple[str, ...] = STAGES
    order: tuple[str, ...] | None = STAGES

    @property
    def vocabulary_sizes(self) -> Mapping[str, str]:
        return {"text": "vocab_size"}

    def parameters(self, config: Wav2Vec2BertConfig) -> tuple[Parameter, ...]:
        return parameters(config)

    def behaviour(self, config: Wav2Vec2BertConfig) -> dict[str, object]:
        return {key: getattr(config, key) for key in _BEHAVIOUR}

    def dialects(self) -> Sequence[Dialect]:
        from warmstart.models.wav2vec2_bert.dialects import CTranslate2Dialect, TransformersDialect

        return (TransformersDialect(), CTranslate2Dialect())

    def build(self, config: Wav2Vec2BertConfig) -> Any:
        raise DialectError(
            "models of wav2vec2-BERT can be converted, but not run or trained by the native engine yet",
            todo="convert it to the framework that it is for (`warmstart convert ... --to ctranslate2`)",
        )
