"""What both sides of a comparison are given: text or sound, made up or from a file; the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.checked import Config
from warmstart.errors import ConfigError, DialectError, VocabularyError
from warmstart.inference.sides import Given, Side, first_rows, longest_source
from warmstart.lean import dataclass

COUNT = 100
SOUNDS = 10  # a second of sound is far more work than a sentence
_SHORTEST, _LONGEST = 1, 24  # tokens
_NAMED = 5  # lines in an error
_FRAMES = 20  # of random sound, at most
_SPECIAL = {"<s>", "</s>", "<unk>", "<pad>", "<blank>", "<mask>", "[PAD]", "[MASK]"}


@dataclass(frozen=True)
class Inputs:
    """Sources and outputs to score, in rows of the vocabularies."""

    sources: list[tuple[int, ...]]
    targets: list[tuple[int, ...]] = field(default_factory=list)
    kind: str = "random"


def random_texts(side: Side, positions: int | None, count: int, seed: int) -> Inputs:
    """``count`` pairs of random rows."""
    generator = random.Random(seed)
    rows = [_ordinary(table) for table in side.tokens]
    longest = longest_source(positions, _LONGEST)

    def some(choices: list[int]) -> tuple[int, ...]:
        return tuple(generator.choice(choices) for _ in range(generator.randint(_SHORTEST, longest)))

    pairs = [(some(rows[0]), some(rows[1])) for _ in range(count)]
    return Inputs([source for source, _ in pairs], [target for _, target in pairs])


def given_texts(sides: Sequence[Side], lines: Sequence[str], longest: int | None = None) -> Inputs:
    """The rows of ``lines``; empty ones are left out. ``longest``: how many tokens the models take.

    Raises:
        VocabularyError: nothing knows how text becomes tokens.
        ConfigError: there is no text, or lines are too long.
    """
    text = next((side.text for side in sides if side.text is not None), None)
    if text is None:
        raise VocabularyError("nothing knows how text becomes tokens", todo="give --vocab, or leave out --inputs")
    sources = [tuple(text[0].encode(line)) for line in lines]
    spoken = [source for source in sources if source]
    if not spoken:
        raise ConfigError("the inputs hold no text")
    long = {k: len(ids) for k, ids in enumerate(sources, 1) if longest is not None and len(ids) > longest}
    if long:
        raise ConfigError(
            "lines of the inputs are longer than the models have positions",
            expected=f"at most {longest} tokens",
            found=", ".join(f"{length} in line {k}" for k, length in list(long.items())[:_NAMED])
            + (f" and {len(long) - _NAMED} more" if len(long) > _NAMED else ""),
            todo="cut them, or leave them out",
        )
    return Inputs(spoken, [], "given")


def random_given(kind: str, config: Config, tokens: Sequence[str], count: int, seed: int) -> list[Given]:
    """``count`` random inputs of a model of ``kind`` (``sides.ARRAYS``), in numbers that sound has: normal, of size 1.

    ``ids`` [T] for encoders; ``features`` [mels, frames] and ``prompt`` [T] for Whisper; ``samples`` [n] for wav2vec
    2.0; ``features`` [frames, filters] for wav2vec2-BERT.
    """
    generator = np.random.default_rng(seed)
    made: dict[str, Any] = {"encoder": _ids, "whisper": _spectrum, "wav2vec2": _samples, "wav2vec2_bert": _filters}
    return [made[kind](config, tokens, generator) for _ in range(count)]


def given_ids(sides: Sequence[Side], lines: Sequence[str], longest: int | None = None) -> list[Given]:
    """``lines`` for an encoder. Raises what :func:`given_texts` raises."""
    return [{"ids": np.array(source)} for source in given_texts(sides, lines, longest).sources]


def _ordinary(tokens: Sequence[str]) -> list[int]:
    """Rows of tokens that text is made of (padding, for one, is not computed), of equal ones the first."""
    first = first_rows(tokens)
    return [row for row, token in enumerate(tokens) if token not in _SPECIAL and first[token] == row]


def _ids(config: Any, tokens: Sequence[str], generator: np.random.Generator) -> Given:
    length = generator.integers(_SHORTEST, min(_LONGEST, config.max_positions), endpoint=True)
    return {"ids": generator.choice(_ordinary(tokens), length)}


def _spectrum(config: Any, tokens: Sequence[str], generator: np.random.Generator) -> Given:
    """Text behind the two tokens that the engine asks for: the start, and that no times follow."""
    frame = [_row(tokens, "<|startoftranscript|>"), _row(tokens, "<|notimestamps|>")]
    text = generator.integers(0, frame[0], min(_LONGEST, config.max_target_positions // 2 - len(frame)))
    features = _sound(generator, config.num_mel_bins, 2 * config.max_source_positions)
    return {"features": features, "prompt": np.concatenate([frame, text])}


def _samples(config: Any, tokens: Sequence[str], generator: np.random.Generator) -> Given:
    strides = [5, *[2] * (len(config.conv_kernel) - 1)]
    length = int(generator.integers(1, _FRAMES, endpoint=True) - 1) * prod(strides)
    length += 1 + sum((width - 1) * prod(strides[:k]) for k, width in enumerate(config.conv_kernel))
    return {"samples": _sound(generator, length)}


def _filters(config: Any, tokens: Sequence[str], generator: np.random.Generator) -> Given:
    return {"features": _sound(generator, int(generator.integers(8, 4 * _FRAMES)), config.input_size)}


def _sound(generator: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return generator.standard_normal(shape).astype(np.float32)


def _row(tokens: Sequence[str], token: str) -> int:
    if token not in tokens:
        raise DialectError("a model of Whisper without the tokens that its engine asks for", expected=token)
    return tokens.index(token)
