"""DeepSpeech as a TensorFlow Lite model of one recording's next 16 frames, with the state of its LSTM in and out.

Inputs ``args_0``: features float32 [1, 16 + 2·n_context, n_input]; ``args_1``, ``args_2``: output and cell of the LSTM,
[1, 1, n_hidden], zeros at first. Outputs ``output_0``: log-probabilities [1, 16, vocab_size]; ``output_1``,
``output_2``: the state for the next piece. Coqui's own client does not open it: it looks for TensorFlow 1's nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.dialects.beside import config_file
from warmstart.models.deepspeech.parameters import parameters
from warmstart.models.family import Dialect, Facts
from warmstart.spec.mapping import Rule, rule
from warmstart.vocabularies.vocabulary import Vocabulary

FRAMES = 16  # Coqui's default of --n_steps


@dataclass(frozen=True)
class TfliteDialect(Dialect):
    """A TensorFlow Lite model, made of the torch module by litert-torch. Written, not read."""

    name: str = "tflite"
    layout: str = "tflite"
    readable: bool = False
    quantizations: tuple[str, ...] = ("int8",)

    def rules(self, config: DeepSpeechConfig) -> list[Rule]:
        return [rule(p.name, p.name) for p in parameters(config)]

    def header(self, config: DeepSpeechConfig, facts: Facts) -> Mapping[str, str]:
        return {"family": "deepspeech", "config": config.model_dump_json(), "frames": str(FRAMES)}

    def files(
        self, config: DeepSpeechConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts
    ) -> Mapping[str, bytes]:
        return config_file(config, vocabularies, frames=FRAMES)
