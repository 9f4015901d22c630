"""Do two speech models of the family ``deepspeech`` give the same log-probabilities? Our own module, ONNX and
TensorFlow Lite files are run as ``transcribe`` runs them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.bundle.model import Model
from warmstart.errors import ConfigError, DialectError
from warmstart.inference.compare_arrays import compare_arrays
from warmstart.inference.inputs import SOUNDS
from warmstart.inference.sides import QUANTIZED, Answer, Given, narrowest
from warmstart.inference.speech.acoustic import Acoustic, NativeAcoustic, alphabet_of, exported, open_acoustic
from warmstart.inference.tolerance import judge_alone
from warmstart.inference.verify import array_facts, require_one_vocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

_LEAST = float(np.log(np.finfo(np.float32).tiny))  # what a probability of TensorFlow Lite can be
_PIECES = 5  # of random sound, at most
_LARGEST, _MEAN = 3.0, 0.08  # of the spread in int8; the mean where activations are rounded, too (decision 0080)
_FRAMES = 16  # of a piece, where neither side asks for a number


class AcousticSide:
    """A speech model that hears features [T, F]."""

    text: tuple[Vocabulary, Vocabulary] | None = None

    def __init__(self, acoustic: Acoustic, quantization: str) -> None:
        self.acoustic, self.engine, self.quantization = acoustic, acoustic.engine, quantization
        self.tokens: tuple[Sequence[str], ...] = (acoustic.alphabet.tokens,)

    def answers(self, given: Given) -> dict[str, Answer]:
        features_TF, around = given["features"], self.acoustic.n_context
        padded = np.pad(features_TF, ((around, around), (0, 0)))[None]
        each, state, found = self.acoustic.frames or len(features_TF), self.acoustic.start(1), []
        for first in range(0, len(features_TF), each):
            log_probs, state = self.acoustic.step(padded[:, first : first + each + 2 * around], state)
            found.append(log_probs[0])
        return {"letters": Answer(np.maximum(np.concatenate(found), _LEAST), "log-probabilities")}


def hears(model: Model) -> bool:
    """Whether the model is one of those that are compared here."""
    return model.family is not None and model.family.name == "deepspeech"


def side_of(source: str | Path | Model, vocabularies: Sequence[str] = ()) -> AcousticSide:
    """The side of an opened model, or of one that ``convert`` exported.

    Raises:
        DialectError, BundleError, VocabularyError: it is no speech model that is run here.
        MissingExtra: what runs it is not installed.
    """
    if not isinstance(source, Model):
        folder = exported(source)
        if folder is not None:
            return AcousticSide(open_acoustic(folder), _quantization(folder))
        from warmstart.bundle.model import open_model

        source = open_model(source, vocabularies=vocabularies)
    from warmstart.inference.load import load_module

    acoustic = NativeAcoustic(load_module(source, "cpu"), alphabet_of(source))
    return AcousticSide(acoustic, narrowest({entry.dtype for entry in source.checkpoint.entries.values()}))


def verify_speech(
    sides: tuple[AcousticSide, AcousticSide],
    names: tuple[str, str],
    lines: Sequence[str] | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """As :func:`warmstart.inference.verify.verify_models`, on noise.

    Raises:
        ConfigError: there are ``lines``.
        DialectError: the two hear different features.
        VocabularyError: their labels differ.
    """
    if lines is not None:
        raise ConfigError("inputs are lines of text, and this model hears sound", todo="leave out --inputs")
    require_one_vocabulary(names, sides)
    mfcc, other = (side.acoustic.mfcc for side in sides)
    if mfcc != other:
        raise DialectError("the two models hear different features", where=names[1], expected=mfcc, found=other)
    kinds = [side.quantization for side in sides]
    judge = judge_alone(kinds, tolerance)
    if "int8" in kinds:
        rounds_all = any((side.engine, side.quantization) == ("litert", "int8") for side in sides)
        judge = replace(judge, parts=(_LARGEST, _MEAN if rounds_all else judge.parts[1]))
    generator = np.random.default_rng(seed)
    each = math.lcm(*(side.acoustic.frames or 1 for side in sides))
    each = _FRAMES if each == 1 else each
    lengths = [each * int(generator.integers(1, _PIECES, endpoint=True)) for _ in range(count or SOUNDS)]
    inputs = [{"features": mfcc(_noise(generator, mfcc.window + (frames - 1) * mfcc.step))} for frames in lengths]
    facts = array_facts(sides, compare_arrays(*sides, inputs, judge), len(inputs), "random")
    given = "spread" if tolerance is None else "given"
    return facts | {"a": names[0], "b": names[1], "tolerance_from": given}


def _noise(generator: np.random.Generator, count: int) -> NDArray[np.float32]:
    """(count,) samples, faint or loud: features that no sound has make int8 differ by more than any recording does."""
    loudness = 10.0 ** generator.uniform(-3, -0.5)
    samples: NDArray[np.float32] = (loudness * generator.standard_normal(count)).clip(-1, 1).astype(np.float32)
    return samples


def _quantization(folder: Path) -> str:
    """What our conversion recorded; whole numbers where it did not."""
    try:
        said = json.loads((folder / "conversion.json").read_text("utf-8"))["options"]["quantization"]
    except (OSError, ValueError, KeyError, TypeError):
        return "float32"
    return said if said in QUANTIZED else "float32"
