"""Acoustic models that take features in pieces: our own module, an ONNX graph, a TensorFlow Lite file.

Shapes: B recordings, K frames of a piece, C ``n_context``, F coefficients of a frame, H ``n_hidden``, A labels and
blank.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import BundleError, ConfigError, DialectError, MissingExtra, VocabularyError
from warmstart.models.deepspeech.mfcc import Mfcc
from warmstart.vocabularies.alphabet import Alphabet

Floats = NDArray[np.float32]
State = tuple[Any, Any]
CONFIG = "config.json"


class Acoustic(ABC):
    """Log-probabilities of labels, frame by frame.

    Attributes:
        alphabet: the labels, with the blank last.
        mfcc: how features are made of samples.
        n_context: frames that are seen on each side of one.
        n_hidden: width of the state.
        frames: how many frames a piece must have; None: any number.
    """

    frames: int | None = None

    def __init__(self, alphabet: Alphabet, mfcc: Mfcc, n_context: int, n_hidden: int) -> None:
        self.alphabet, self.mfcc, self.n_context, self.n_hidden = alphabet, mfcc, n_context, n_hidden

    def start(self, batch: int) -> State:
        """The state before the first frame."""
        zeros = np.zeros((1, batch, self.n_hidden), np.float32)
        return zeros, zeros

    @abstractmethod
    def step(self, padded: Floats, state: State) -> tuple[Floats, State]:
        """Log-probabilities [B, K, A] of K frames, given ``padded`` [B, K + 2C, F] with those around them (zeros
        beyond the ends), and the state after them."""


class NativeAcoustic(Acoustic):
    """The family's torch module."""

    def __init__(self, module: Any, alphabet: Alphabet) -> None:
        config = module.config
        mfcc = Mfcc(config.sample_rate, config.win_ms, config.step_ms, config.n_input)
        super().__init__(alphabet, mfcc, config.n_context, config.n_hidden)
        self._module = module.eval()

    def start(self, batch: int) -> State:
        state: State = self._module.initial_state(batch)
        return state

    def step(self, padded: Floats, state: State) -> tuple[Floats, State]:
        import torch

        with torch.inference_mode():
            windows = torch.from_numpy(padded).unfold(1, 2 * self.n_context + 1, 1).transpose(2, 3)
            logits, state = self._module.step(windows, state)
            return logits.float().log_softmax(-1).numpy(), state


class OnnxAcoustic(Acoustic):
    """A directory that ``convert --to onnx`` wrote, run by onnxruntime."""

    def __init__(self, folder: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtra("onnxruntime", "onnx") from None
        super().__init__(*_described(folder))
        path = folder / "model.onnx"
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no class of its own for them
            raise BundleError("onnxruntime does not open this model", where=path, found=str(error)[:200]) from None

    def step(self, padded: Floats, state: State) -> tuple[Floats, State]:
        log_probs, h, c = self._session.run(None, {"features": padded, "h": state[0], "c": state[1]})
        return log_probs, (h, c)


class TfliteAcoustic(Acoustic):
    """A directory that ``convert --to tflite`` wrote, run by LiteRT. Recordings of a batch go one after another."""

    def __init__(self, folder: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise MissingExtra("ai-edge-litert", "tflite") from None
        super().__init__(*_described(folder))
        path = folder / "model.tflite"
        try:
            self._run = Interpreter(str(path)).get_signature_runner()
        except (ValueError, RuntimeError) as error:
            raise BundleError("LiteRT does not open this model", where=path, found=str(error)[:200]) from None
        self.frames = self._run.get_output_details()["output_0"]["shape"][1].item()

    def step(self, padded: Floats, state: State) -> tuple[Floats, State]:
        rows = [self._run(args_0=x[None], args_1=h[None], args_2=c[None]) for x, h, c in _rows(padded, state)]
        log_probs, h, c = (
            np.concatenate([row[f"output_{k}"] for row in rows], axis) for k, axis in enumerate((0, 1, 1))
        )
        return log_probs, (h, c)


def open_acoustic(source: str | Path, *, vocabularies: tuple[str, ...] = ()) -> Acoustic:
    """The model at ``source``: a run, a bundle, a Coqui checkpoint (``DIR@best``), or one exported to ONNX or
    TensorFlow Lite.

    Args:
        vocabularies: the alphabet's file, where the source does not say.

    Raises:
        SourceError, FormatError, DialectError, BundleError, VocabularyError: it cannot be opened, or is no speech model
            that is run here.
        MissingExtra: torch, or what runs an exported model, is not installed.
    """
    folder = Path(source).expanduser()
    for file, kind in (("model.onnx", OnnxAcoustic), ("model.tflite", TfliteAcoustic)):
        if (folder / file).is_file():
            return kind(folder)
    from warmstart.bundle.model import open_model

    model = open_model(source, vocabularies=vocabularies)
    family, _, _ = model.require()
    if family.name != "deepspeech":
        raise DialectError(
            f"models of {family.name} do not transcribe here",
            where=model.path,
            expected="a model of deepspeech",
        )
    alphabet = model.vocabularies.get("text")
    if not isinstance(alphabet, Alphabet):
        raise BundleError("the model has no alphabet", where=model.path, todo="give its file with --vocab")
    from warmstart.inference.translate import load_module

    return NativeAcoustic(load_module(model), alphabet)


def _rows(padded: Floats, state: State) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Features [K + 2C, F] and state [1, H] of each recording."""
    for b, features in enumerate(padded):
        yield features, state[0][:, b], state[1][:, b]


def _described(folder: Path) -> tuple[Alphabet, Mfcc, int, int]:
    """What config.json beside an exported model says."""
    path = folder / CONFIG
    try:
        said = json.loads(path.read_text("utf-8"))
        alphabet = Alphabet.from_json({"kind": Alphabet.kind, **said["alphabet"]}, path)
        mfcc = Mfcc(*(int(said[key]) for key in ("sample_rate", "win_ms", "step_ms", "n_input")))
        return alphabet, mfcc, int(said["n_context"]), int(said["n_hidden"])
    except (OSError, ValueError, KeyError, TypeError, VocabularyError, ConfigError) as error:
        raise BundleError(
            "the exported model's configuration cannot be read",
            where=path,
            found=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            todo="export the model again",
        ) from None
