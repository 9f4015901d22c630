"""The family as others meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from warmstart.checked import Config
from warmstart.lean import dataclass
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.parameters import STAGES, VOCABULARY, parameters
from warmstart.models.family import Dialect, Parameter
from warmstart.models.lazily import Later, Lazily

_BEHAVIOUR = ("n_input", "n_context", "relu_clip", "sample_rate", "win_ms", "step_ms")

_HERE = "warmstart.models.deepspeech.dialects"
DIALECTS: Lazily[Dialect] = Lazily(
    Later("coqui-cudnn", f"{_HERE}.coqui", "CoquiDialect", ("tensorflow",), {"name": "coqui-cudnn", "cudnn": True}),
    Later("coqui", f"{_HERE}.coqui", "CoquiDialect", ("tensorflow",)),
    Later("onnx", f"{_HERE}.onnx", "OnnxDialect", ("",)),  # written, not read
    Later("tflite", f"{_HERE}.tflite", "TfliteDialect", ("",)),
)


@dataclass(frozen=True)
class DeepSpeechFamily:
    """DeepSpeech. Its stages are a line from input to output, so that ``drop_last`` counts them from the end."""

    name: str = "deepspeech"
    revision: int = 1
    config_type: type[Config] = DeepSpeechConfig
    stages: tuple[str, ...] = STAGES
    order: tuple[str, ...] | None = STAGES

    @property
    def vocabulary_sizes(self) -> Mapping[str, str]:
        return {VOCABULARY: "vocab_size"}

    def parameters(self, config: DeepSpeechConfig) -> tuple[Parameter, ...]:
        return parameters(config)

    def behaviour(self, config: DeepSpeechConfig) -> dict[str, object]:
        return {key: getattr(config, key) for key in _BEHAVIOUR}

    def dialects(self) -> Sequence[Dialect]:
        return DIALECTS

    def build(self, config: DeepSpeechConfig) -> Any:
        from warmstart.models.deepspeech.module import DeepSpeech

        return DeepSpeech(config)
