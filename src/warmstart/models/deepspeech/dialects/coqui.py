"""How Coqui STT and DeepSpeech (0.6 and later) spell DeepSpeech: TensorFlow bundles with flags and an alphabet.

Source of the names: Coqui STT 1.4.0, ``training/coqui_stt_training/train.py`` and ``util/checkpoints.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path

import numpy as np

from warmstart.checked import Invalid
from warmstart.errors import ConfigError, DialectError, Problem, VocabularyError, validation_problems
from warmstart.formats.checkpoint import Array, Checkpoint
from warmstart.lean import dataclass
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.dialects.checkpoint import (
    ALPHABET,
    CELL,
    GATES,
    OPAQUE,
    CoquiCheckpoint,
    CudnnCheckpoint,
    folder_of,
)
from warmstart.models.deepspeech.dialects.flags import DIRECTORIES, NAME, Flags, flags_of, parse_flags, read_flags
from warmstart.models.deepspeech.parameters import DENSE, VOCABULARY
from warmstart.models.family import Dialect, Facts
from warmstart.spec.lstm import CudnnLstm
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Chain, Transpose
from warmstart.vocabularies.alphabet import Alphabet
from warmstart.vocabularies.load import load_alphabet
from warmstart.vocabularies.vocabulary import Vocabulary

_INPUT, _CONTEXT = 26, 9  # written into Coqui's code
_BYTES = 256
_NORM = "layer_1/LayerNorm/gamma"
_STATES = "checkpoint best_dev_checkpoint"
_SAID = "audio_sample_rate=8000,bytes_output_mode=true"
_LOSS_SCALING = "of automatic mixed precision, whose weights are float32; a training without it has none"


@dataclass(frozen=True)
class CoquiDialect(Dialect):
    """``layer_N/weights`` are [in, out]; the LSTM is one kernel [in + state, gates], and with ``cudnn`` also the opaque
    array of a training with ``--train_cudnn true``.

    ``said`` are flags that a person gives (``--from coqui:audio_sample_rate=8000``); they count before flags.txt.
    """

    name: str = "coqui"
    cudnn: bool = False
    said: Mapping[str, str] = field(default_factory=dict)
    framework: str = "coqui"
    layout: str = "tensorflow-saver"
    keeps_slots: bool = True

    def recognise(self, checkpoint: Checkpoint) -> bool:
        needed = {"layer_1/weights": 2, "layer_6/weights": 2, **({OPAQUE: 1} if self.cudnn else {f"{CELL}/kernel": 2})}
        found = {name: len(checkpoint.entries[name].shape) for name in needed if name in checkpoint.entries}
        return checkpoint.format == "tensorflow" and found == needed

    def told(self, what: str) -> Dialect:
        said = dict(part.partition("=")[::2] for part in what.split(","))
        known = set(Flags.model_fields) - {"n_hidden", "layer_norm"}
        if not set(said) <= known or "" in said.values():
            raise ConfigError(
                f"this says nothing of a model of {self.name}",
                found=what,
                expected=f"flags such as {_SAID}; of {', '.join(sorted(known))}",
            )
        parse_flags(said, f"--from {self.name}:{what}")
        return replace(self, said=said)

    # what both directions share

    def rules(self, config: DeepSpeechConfig) -> list[Rule]:
        if (config.n_input, config.n_context) != (_INPUT, _CONTEXT):
            raise DialectError(
                "Coqui cannot express these features",
                expected=f"n_input {_INPUT}, n_context {_CONTEXT}",
                found=f"n_input {config.n_input}, n_context {config.n_context}",
            )
        return [*_dense(config), *self._lstm(config)]

    def _lstm(self, config: DeepSpeechConfig) -> Iterator[Rule]:
        if self.cudnn:
            yield rule(OPAQUE, ("lstm.weight", "lstm.bias"), CudnnLstm(config.n_hidden, config.n_hidden))
        yield rule(f"{CELL}/kernel", "lstm.weight", Chain((Transpose(), GATES)), copy=self.cudnn)
        yield rule(f"{CELL}/bias", "lstm.bias", GATES, copy=self.cudnn)

    # what is read

    def view(self, checkpoint: Checkpoint) -> Checkpoint:
        if isinstance(checkpoint, CoquiCheckpoint):
            return checkpoint
        if not self.cudnn:
            return CoquiCheckpoint(checkpoint)
        units, _ = checkpoint.entries["layer_6/weights"].shape
        return CudnnCheckpoint(checkpoint, CudnnLstm(units, units))

    def read_config(self, checkpoint: Checkpoint) -> DeepSpeechConfig:
        (inputs, _), (hidden, labels) = (checkpoint.entries[f"layer_{n}/weights"].shape for n in (1, 6))
        flags = self._flags(checkpoint)
        problems = []
        if inputs != _INPUT * (2 * _CONTEXT + 1):
            expected = f"{_INPUT} coefficients of {2 * _CONTEXT + 1} frames: {_INPUT * (2 * _CONTEXT + 1)}"
            problems.append(Problem("layer_1/weights reads other features", expected=expected, found=str(inputs)))
        if flags.bytes_output_mode and labels != _BYTES:
            what = "the flags say bytes_output_mode, but the output has other labels"
            problems.append(Problem(what, expected=f"{_BYTES} columns in layer_6/weights", found=str(labels)))
        try:
            config = DeepSpeechConfig(
                vocab_size=labels, n_hidden=hidden, layer_norm=_NORM in checkpoint.entries, **flags.model()
            )
        except Invalid as error:
            problems += validation_problems(error)
        if problems:
            raise DialectError("this is no model of Coqui's", where=checkpoint.path, problems=problems)
        return config

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        if len(set(files)) > 1:
            raise VocabularyError("this model has one alphabet", where=checkpoint.path, found=", ".join(files))
        if files:
            return {VOCABULARY: load_alphabet(Path(files[0]))}
        if self._flags(checkpoint).bytes_output_mode:
            return {VOCABULARY: Alphabet.of_bytes()}
        path = folder_of(checkpoint) / ALPHABET
        if not path.is_file():
            raise VocabularyError(
                "there is no alphabet beside the checkpoint",
                where=folder_of(checkpoint),
                expected=ALPHABET,
                todo="give the one that it was trained with: --vocab ALPHABET (in a training `start.files`)",
            )
        try:
            alphabet = load_alphabet(path)
        except VocabularyError:
            if _labels(checkpoint) == _BYTES:
                raise self._of_bytes(path, "no text") from None
            raise
        if _labels(checkpoint) == _BYTES != len(alphabet):
            raise self._of_bytes(path, f"{len(alphabet.labels)} labels")
        return {VOCABULARY: alphabet}

    def _of_bytes(self, path: Path, found: str) -> VocabularyError:
        return VocabularyError(
            "the alphabet is not that of the model, whose outputs are as many as byte mode has",
            where=path,
            expected=f"{_BYTES - 1} labels and the blank",
            found=f"{found}: what Coqui writes for a model of bytes cannot be read back",
            todo=f"if it is one: --from {self.name}:bytes_output_mode=true; else give its alphabet with --vocab",
        )

    def remarks(self, checkpoint: Checkpoint) -> list[str]:
        flags = read_flags(folder_of(checkpoint))
        if flags is None and "audio_sample_rate" not in self.said:
            return [
                f"there is no {NAME} beside the checkpoint, and Coqui's defaults are taken: 16,000 samples a second, "
                f"windows of 32 ms, 20 ms apart; --from {self.name}:audio_sample_rate=8000 says otherwise"
            ]
        said = self._flags(checkpoint)
        found = {"n_hidden": checkpoint.entries["layer_6/weights"].shape[0], "layer_norm": _NORM in checkpoint.entries}
        return [
            f"{NAME} says {key} {json.dumps(getattr(said, key))}, the arrays have {json.dumps(value)}, which counts "
            "(Coqui writes the file before it corrects itself)"
            for key, value in found.items()
            if getattr(said, key) not in (None, value)
        ]

    def _flags(self, checkpoint: Checkpoint) -> Flags:
        folder = folder_of(checkpoint)
        return parse_flags({**(read_flags(folder) or {}), **self.said}, folder / NAME)

    def left_behind(self, config: DeepSpeechConfig) -> Mapping[str, str]:
        twice = "the kernel once more in cuDNN's layout; its optimizer state stays behind with it"
        return {f"{OPAQUE}**": twice, "current_loss_scale": _LOSS_SCALING, "good_steps": _LOSS_SCALING}

    # what is written

    def header(self, config: DeepSpeechConfig, facts: Facts) -> Mapping[str, str]:
        prefix = facts.metadata.get("coqui", {}).get("prefix")
        return {"prefix": prefix or f"best_dev-{facts.step}", "states": _STATES}

    def scalars(self, config: DeepSpeechConfig, facts: Facts) -> Mapping[str, Array]:
        """The step and Adam's numbers: those of the source, else of Adam as it is after so many updates where its state
        comes along, and before the first where it begins afresh. Decays that nobody says are Coqui's defaults."""
        written: dict[str, Array] = {"global_step": np.asarray(facts.step, np.int64)}
        updates = facts.step if facts.updates is None else facts.updates
        for name, beta in zip(("beta1_power", "beta2_power"), facts.betas or (0.9, 0.999), strict=True):
            power = beta ** (updates + 1 if facts.slots else 1)
            written[name] = np.asarray(facts.optimizer.get(name, power), np.float32)
        if "learning_rate" in facts.optimizer:
            written["learning_rate"] = np.asarray(facts.optimizer["learning_rate"], np.float32)
        return written

    def files(
        self, config: DeepSpeechConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts
    ) -> Mapping[str, bytes]:
        alphabet = vocabularies[VOCABULARY]
        if not isinstance(alphabet, Alphabet):
            raise VocabularyError("Coqui needs an alphabet", expected=Alphabet.kind, found=alphabet.kind)
        before = facts.metadata.get("coqui", {})
        flags = {
            **(before.get("flags") or {}),
            **flags_of(config, alphabet.utf8),
            **dict.fromkeys(DIRECTORIES, ""),
        }
        written = {NAME: json.dumps(flags, indent=2).encode("utf-8")}
        if not alphabet.utf8:  # of bytes Coqui itself could not read one back
            written[ALPHABET] = _alphabet_text(alphabet, before.get("alphabet")).encode("utf-8")
        return written


def _labels(checkpoint: Checkpoint) -> int:
    """Outputs of the model, the blank among them."""
    return checkpoint.entries["layer_6/weights"].shape[1]


def _dense(config: DeepSpeechConfig) -> Iterator[Rule]:
    for layer in (*DENSE, "layer_6"):
        yield rule(f"{layer}/weights", f"{layer}.weight", Transpose())
        yield rule(f"{layer}/bias", f"{layer}.bias")
        if config.layer_norm and layer in DENSE:
            yield rule(f"{layer}/LayerNorm/gamma", f"{layer}.norm.weight")
            yield rule(f"{layer}/LayerNorm/beta", f"{layer}.norm.bias")


def _alphabet_text(alphabet: Alphabet, before: str | None) -> str:
    """The alphabet's file, with the comments of the one ``before`` where that says the same."""
    if before is not None:
        try:
            if Alphabet.from_text(before).tokens == alphabet.tokens:
                return before
        except VocabularyError:
            pass
    return alphabet.to_text()
