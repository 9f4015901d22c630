"""Scorers and alphabets damaged by the hundred: what they hold, or one clear error."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import hostile
from ctc_models import BYTES, GOLDEN, LABELS
from warmstart.errors import CorruptCheckpoint
from warmstart.inference.ctc.language_model import arpa_words
from warmstart.inference.ctc.lexicon import Lexicon
from warmstart.inference.ctc.scorer_file import MAGIC, TRAILER, _write_lexicon, check_labels, read_package
from warmstart.vocabularies.load import load_alphabet


@pytest.mark.parametrize("name", ["words", "characters"])
def test_packages(name: str, tmp_path: Path) -> None:
    labels = BYTES if name == "characters" else LABELS

    def words(path: Path) -> list[str]:
        package = read_package(path)
        if package is None:
            return []
        check_labels(package.lexicon, labels, path)
        return list(islice(package.lexicon.words(labels), 1000))

    path = copied(GOLDEN / f"{name}.scorer", tmp_path)
    assert words(path)
    hostile.run(path, [path], tmp_path / "work", read=words)


def test_language_models_as_text(tmp_path: Path) -> None:
    def words(path: Path) -> tuple[list[str], list[str]] | None:
        found = arpa_words(path)
        if found is None:
            return None
        lexicon, left = Lexicon.of(found, LABELS)
        return left, list(lexicon.words(LABELS))

    path = copied(GOLDEN / "words.arpa", tmp_path)
    assert words(path)
    hostile.run(path, [path], tmp_path / "work", read=words)


@pytest.mark.parametrize("name", ["alphabet.txt", "alphabet.json", "bytes.json"])
def test_alphabets(name: str, tmp_path: Path) -> None:
    def labels(path: Path) -> tuple[str, ...]:
        alphabet = load_alphabet(path)
        assert alphabet.blank_id == len(set(alphabet.labels))
        return alphabet.tokens

    path = tmp_path / "file" / name
    path.parent.mkdir()
    alphabet = BYTES if name == "bytes.json" else LABELS
    path.write_bytes(alphabet.to_text().encode() if path.suffix == ".txt" else alphabet.file()[1])
    assert labels(path) == alphabet.tokens
    hostile.run(path, [path], tmp_path / "work", read=labels)


def test_a_package_cut_off_in_its_trailer_is_no_language_model_alone(tmp_path: Path) -> None:
    data = (GOLDEN / "words.scorer").read_bytes()
    at = data.rindex(MAGIC)
    path = tmp_path / "x.scorer"
    for size in range(at + len(MAGIC), len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(CorruptCheckpoint):
            read_package(path)
    path.write_bytes(data[:at])
    assert read_package(path) is None


def test_a_lexicon_of_ways_without_words_is_refused(tmp_path: Path) -> None:
    """From the start to the end of one word, or into sixty states with two arcs each: 2^60 ways to no word."""
    steps = 60
    counts = [2, 0, *[2] * steps, 0]
    lexicon = Lexicon(
        offsets=np.cumsum([0, *counts]),
        labels=np.array([0, 1] * (steps + 1)),
        targets=np.array([1, 2, *np.repeat(np.arange(steps) + 3, 2)]),
        final=np.arange(len(counts)) == 1,
    )
    data = (GOLDEN / "characters.scorer").read_bytes()
    path = tmp_path / "x.scorer"
    with path.open("wb") as file:
        file.write(data[: data.rindex(MAGIC) + TRAILER.size])
        _write_lexicon(file, lexicon)
    with hostile.limits(2), pytest.raises(CorruptCheckpoint, match="states that lead to words"):
        read_package(path)


def copied(original: Path, folder: Path) -> Path:
    path = folder / "file" / original.name
    path.parent.mkdir()
    path.write_bytes(original.read_bytes())
    return path
