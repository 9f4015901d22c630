"""Acoustic models that take features in pieces: our own module, an ONNX graph, a TensorFlow Lite file.

Shapes: B recordings, K frames of a piece, C ``n_context``, F coefficients of a frame, H ``n_hidden``, A labels and
blank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from warmstart.errors import BundleError, ConfigError, DialectError, MissingExtra, Problem, VocabularyError
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.dialects.beside import read_config_file
from warmstart.models.deepspeech.mfcc import Mfcc
from warmstart.models.deepspeech.parameters import VOCABULARY
from warmstart.vocabularies.alphabet import Alphabet

if TYPE_CHECKING:
    from warmstart.bundle.model import Model

Floats = NDArray[np.float32]
State = tuple[Any, Any]


class Acoustic(ABC):
    """Log-probabilities of labels, frame by frame.

    Attributes:
        alphabet: the labels, with the blank last.
        mfcc: how features are made of samples.
        n_context: frames that are seen on each side of one.
        n_hidden: width of the state.
        frames: how many frames a piece must have; None: any number.
        engine: who computes.
    """

    frames: int | None = None
    engine = "warmstart"

    def __init__(self, config: DeepSpeechConfig, alphabet: Alphabet) -> None:
        self.alphabet, self.mfcc = alphabet, Mfcc.of(config)
        self.n_context, self.n_hidden = config.n_context, config.n_hidden

    def start(self, batch: int) -> State:
        """The state before the first frame."""
        zeros = np.zeros((1, batch, self.n_hidden), np.float32)
        return zeros, zeros

    def _check(self, path: Path, widths: Mapping[str, Sequence[object]]) -> None:
        """Whether the last axes of an exported model's tensors are those that stand in config.json beside it.

        Raises:
            BundleError: every one that is not.
        """
        expected = {"features": self.mfcc.n_input, "h": self.n_hidden, "log_probs": len(self.alphabet)}
        problems = [
            Problem(f"{name} is of another width", expected=str(width), found=str(*widths[name]) or "nothing")
            for name, width in expected.items()
            if list(widths[name]) != [width]
        ]
        if problems:
            raise BundleError(
                "config.json is not that of the model beside it",
                where=path,
                todo="export the model again",
                problems=problems,
            )

    @abstractmethod
    def step(self, padded: Floats, state: State) -> tuple[Floats, State]:
        """Log-probabilities [B, K, A] of K frames, given ``padded`` [B, K + 2C, F] with those around them (zeros
        beyond the ends), and the state after them."""


class NativeAcoustic(Acoustic):
    """The family's torch module."""

    def __init__(self, module: Any, alphabet: Alphabet) -> None:
        super().__init__(module.config, alphabet)
        self._module, self._device = module.eval(), module.lstm.bias.device

    def start(self, batch: int) -> State:
        state: State = self._module.initial_state(batch)
        return state

    def step(self, padded: Floats, state: State) -> tuple[Floats, State]:
        import torch

        with torch.inference_mode():
            windows = torch.from_numpy(padded).to(self._device).unfold(1, 2 * self.n_context + 1, 1).transpose(2, 3)
            logits, state = self._module.step(windows, state)
            return logits.float().log_softmax(-1).cpu().numpy(), state


class OnnxAcoustic(Acoustic):
    """A directory that ``convert --to onnx`` wrote, run by onnxruntime."""

    engine = "onnxruntime"

    def __init__(self, folder: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtra("onnxruntime", "onnx") from None
        super().__init__(*read_config_file(folder))
        path = folder / "model.onnx"
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no class of its own for them
            raise BundleError("onnxruntime does not open this model", where=path, found=str(error)[:200]) from None
        found = {value.name: value.shape for value in (*self._session.get_inputs(), *self._session.get_outputs())}
        self._check(path, {name: found.get(name, ())[-1:] for name in ("features", "h", "log_probs")})

    def step(self, padded: Floats, state: State) -> tuple[Floats, State]:
        log_probs, h, c = self._session.run(None, {"features": padded, "h": state[0], "c": state[1]})
        return log_probs, (h, c)


class TfliteAcoustic(Acoustic):
    """A directory that ``convert --to tflite`` wrote, run by LiteRT. Recordings of a batch go one after another."""

    engine = "litert"

    def __init__(self, folder: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise MissingExtra("ai-edge-litert", "tflite") from None
        super().__init__(*read_config_file(folder))
        path = folder / "model.tflite"
        try:
            self._interpreter = Interpreter(str(path))
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise BundleError("LiteRT does not open this model", where=path, found=str(error)[:200]) from None
        details = (*self._interpreter.get_input_details(), *self._interpreter.get_output_details())
        self._places = {tensor["name"]: tensor["index"] for tensor in details}
        shapes = {tensor["name"]: tensor["shape"].tolist() for tensor in details}
        names = {"features": "input_node", "h": "previous_state_h", "log_probs": "logits"}
        self._check(path, {name: shapes.get(theirs, ())[-1:] for name, theirs in names.items()})
        self.frames = shapes["logits"][0]

    def step(self, padded: Floats, state: State) -> tuple[Floats, State]:
        rows = [self._row(*row) for row in _rows(padded, state)]
        probabilities, h, c = (np.stack(parts) for parts in zip(*rows, strict=True))
        log_probs = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
        return log_probs, (h.transpose(1, 0, 2), c.transpose(1, 0, 2))

    def _row(self, padded: Floats, h: Floats, c: Floats) -> tuple[Floats, Floats, Floats]:
        windows = sliding_window_view(padded, 2 * self.n_context + 1, axis=0).swapaxes(1, 2)
        given = {"input_node": windows[None], "previous_state_h": h, "previous_state_c": c}
        for name, value in given.items():
            self._interpreter.set_tensor(self._places[name], value)
        self._interpreter.invoke()
        made = [self._interpreter.get_tensor(self._places[n]) for n in ("logits", "new_state_h", "new_state_c")]
        return made[0], made[1], made[2]


def open_acoustic(source: str | Path, *, vocabularies: tuple[str, ...] = (), device: str = "cpu") -> Acoustic:
    """The model at ``source``: a run, a bundle, a Coqui checkpoint (``DIR@best``), or one exported to ONNX or
    TensorFlow Lite, by its directory or its file.

    Args:
        vocabularies: the alphabet's file, where the source does not say.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``; an exported model computes on the CPU.

    Raises:
        ConfigError: there is no such device, or it is not for this model.
        SourceError, FormatError, DialectError, BundleError, VocabularyError: it cannot be opened, or is no speech model
            that is run here.
        MissingExtra: torch, or what runs an exported model, is not installed.
    """
    folder = exported(source)
    if folder is not None:
        if device != "cpu":
            raise ConfigError("an exported model computes on the CPU", where="--device", expected="cpu", found=device)
        return next(kind for file, kind in _EXPORTED.items() if (folder / file).is_file())(folder)
    from warmstart.bundle.model import open_model
    from warmstart.inference.device import choose_device

    place = choose_device(device, "--device")
    model = open_model(source, vocabularies=vocabularies)
    alphabet = alphabet_of(model)
    from warmstart.inference.load import load_module

    return NativeAcoustic(load_module(model, place), alphabet)


_EXPORTED: Mapping[str, type[OnnxAcoustic | TfliteAcoustic]] = {
    "model.onnx": OnnxAcoustic, "model.tflite": TfliteAcoustic,
}  # fmt: skip


def exported(source: str | Path) -> Path | None:
    """The directory that ``source`` (it, or its file) names, if an exported model is there."""
    folder = Path(source).expanduser()
    folder = folder.parent if folder.name in _EXPORTED and folder.is_file() else folder
    return folder if any((folder / file).is_file() for file in _EXPORTED) else None


def alphabet_of(model: Model) -> Alphabet:
    """The labels of a speech model.

    Raises:
        DialectError: it is no model of the family deepspeech.
        VocabularyError: its alphabet is not known.
    """
    family, _, _ = model.require()
    if family.name != "deepspeech":
        raise DialectError(
            f"models of the family {family.name} do not transcribe here",
            where=model.path,
            expected="a model of the family deepspeech",
            todo="`warmstart translate` is for models of text" if "source" in family.vocabulary_sizes else None,
        )
    alphabet = model.vocabularies.get(VOCABULARY)
    if not isinstance(alphabet, Alphabet):
        raise VocabularyError(
            "the alphabet of this model is not known", where=model.path, todo="give its file with --vocab"
        )
    return alphabet


def _rows(padded: Floats, state: State) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Features [K + 2C, F] and state [1, H] of each recording."""
    for b, features in enumerate(padded):
        yield features, state[0][:, b], state[1][:, b]
