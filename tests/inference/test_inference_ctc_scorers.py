"""Scorer packages, lexica and language models."""

from __future__ import annotations

import bz2
import gzip
import itertools
import logging
import lzma
import string
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ctc_models import BYTES, GOLDEN, LABELS, Arpa
from warmstart.errors import (
    ConfigError,
    CorruptCheckpoint,
    FormatError,
    MissingExtra,
    SourceError,
    VocabularyError,
    WarmstartError,
)
from warmstart.inference.ctc import Lexicon, open_scorer, write_package
from warmstart.inference.ctc import language_model as language_model_module
from warmstart.inference.ctc.lexicon import spell
from warmstart.inference.ctc.scorer_file import MAGIC, check_labels, read_package
from warmstart.vocabularies.alphabet import Alphabet

ENGLISH = Alphabet([" ", *string.ascii_lowercase, "'"])
WORDS = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "o'clock", "café", "a"}


def bare(path: Path, folder: Path) -> Path:
    """The language model of a package without what stands behind it."""
    data = path.read_bytes()
    (folder / "bare.binary").write_bytes(data[: data.rindex(MAGIC)])
    return folder / "bare.binary"


def test_every_word_of_coquis_smoke_scorer_is_read(fixtures: Path) -> None:
    package = read_package(fixtures / "fixtures/stt-smoke/pruned_lm.scorer")
    assert package is not None
    assert (package.alpha, package.beta, package.utf8) == (0.75, pytest.approx(1.85), False)
    words = list(package.lexicon.words(ENGLISH))
    assert len(words) == len(set(words)) == 3540
    listed = set((fixtures / "fixtures/stt-smoke/vocab.txt").read_text("utf-8").split())
    assert {"she", "had", "your", "dark", "suit"} <= set(words)
    assert all(set(word) <= set(ENGLISH.tokens) for word in words)
    assert len(listed & set(words)) > 900


def test_written_packages_are_read_back() -> None:
    words = read_package(GOLDEN / "words.scorer")
    assert words is not None
    assert (words.alpha, words.beta, words.utf8) == (0.7, 1.3, False)
    assert set(words.lexicon.words(LABELS)) == WORDS
    characters = read_package(GOLDEN / "characters.scorer")
    assert characters is not None
    assert characters.utf8
    assert set(characters.lexicon.words(BYTES)) == set("oneéß€中😀")


def test_a_lexicon_is_written_as_openfst_writes_it(fixtures: Path, tmp_path: Path) -> None:
    original = fixtures / "fixtures/stt-smoke/pruned_lm.scorer"
    package = read_package(original)
    assert package is not None
    model = bare(original, tmp_path)
    left = write_package(tmp_path / "our.scorer", model, package.lexicon.words(ENGLISH), ENGLISH, alpha=0.75, beta=1.85)
    assert left == []
    ours, theirs = (tmp_path / "our.scorer").read_bytes(), original.read_bytes()
    # The same number of states and arcs, so the same size; states are numbered in another order.
    at = theirs.rindex(MAGIC)
    assert len(ours) == len(theirs)
    assert ours[:at] == theirs[:at]
    assert ours[at + 25 : at + 90] == theirs[at + 25 : at + 90]  # the automaton's header
    again = read_package(tmp_path / "our.scorer")
    assert again is not None
    assert list(again.lexicon.words(ENGLISH)) == list(package.lexicon.words(ENGLISH))


def test_a_lexicon_accepts_its_words_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    words = {"".join(random.choice(list("abé"), random.integers(1, 6))) for _ in range(150)}
    lexicon, left = Lexicon.of([*words, "a b", "", "Ö"], LABELS)
    assert left == ["", "a b", "Ö"]
    assert set(lexicon.words(LABELS)) == words
    rights = {word[i:] for word in words for i in range(len(word) + 1)}
    assert len(lexicon.final) <= len(rights) + 2  # equal ends are shared

    for text in map("".join, itertools.product("abé", repeat=4)):
        assert ((spell(text, LABELS) or []) in lexicon) == (text in words)
    assert [] not in lexicon


@pytest.mark.parametrize("utf8", [False, True])
def test_damaged_packages_are_refused_or_read(utf8: bool, tmp_path: Path) -> None:
    """Every byte behind the language model, changed or missing: never another exception, never an endless walk."""
    original = (GOLDEN / ("characters.scorer" if utf8 else "words.scorer")).read_bytes()
    labels, at = (BYTES if utf8 else LABELS), original.rindex(MAGIC)
    random, path, refused = np.random.default_rng(1), tmp_path / "x.scorer", 0
    for place in range(at, len(original)):
        cut = place % 2 == 0
        path.write_bytes(original[:place] if cut else _changed(original, place, random))
        try:
            package = read_package(path)
            if package is not None:
                assert not cut
                check_labels(package.lexicon, labels, path)
                assert len(list(itertools.islice(package.lexicon.words(labels), 1000))) < 1000
        except WarmstartError:
            refused += 1
    assert refused > (len(original) - at) // 3


def _changed(data: bytes, place: int, random: np.random.Generator) -> bytes:
    return data[:place] + bytes([data[place] ^ int(random.integers(1, 256))]) + data[place + 1 :]


def test_circles_and_other_versions_are_named(tmp_path: Path) -> None:
    data = bytearray((GOLDEN / "words.scorer").read_bytes())
    path = tmp_path / "x.scorer"
    circle = data.copy()
    circle[-4:] = struct.pack("<i", 0)  # the last arc's target: the start
    path.write_bytes(circle)
    with pytest.raises(CorruptCheckpoint, match="a circle of states"):
        read_package(path)
    data[data.rindex(MAGIC) + 4] = 5
    path.write_bytes(data)
    with pytest.raises(FormatError, match="another version"):
        read_package(path)


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("characters", LABELS, "another kind of model"),
        ("words", BYTES, "another kind of model"),
        ("words", Alphabet([*"abcdefgh", " ", *"ijk"]), "label 28"),
        ("words", Alphabet([" ", *"abcdefghijklmnopqrstuvwxyz'é"]), "words that end in 'h'"),
        ("words", Alphabet([*"hgfedcba", " ", *"zyxwvutsrqponmlkji'é"]), "unknown ones"),
    ],
)
def test_a_scorer_of_another_alphabet_is_refused(name: str, labels: Alphabet, message: str) -> None:
    if message == "unknown ones":
        pytest.importorskip("kenlm")
    with pytest.raises(VocabularyError) as caught:
        open_scorer(GOLDEN / f"{name}.scorer", labels)
    assert message in str(caught.value)


def test_kenlm_scores_as_the_definition() -> None:
    pytest.importorskip("kenlm")
    for name, labels in (("words", LABELS), ("characters", BYTES)):
        reference = Arpa(GOLDEN / f"{name}.arpa")
        units = [ngram[0] for ngram in reference.entries if len(ngram) == 1 and ngram[0][0] != "<"]
        ngrams = [(), *itertools.product([*units[:6], "unheard"], repeat=3), *itertools.product(units, repeat=2)]
        for path in (GOLDEN / f"{name}.scorer", GOLDEN / f"{name}.arpa"):
            model = open_scorer(path, labels).model
            assert model.order == 3
            found = [model.log_prob(ngram) for ngram in ngrams]
            np.testing.assert_allclose(found, [reference.log_prob(ngram) for ngram in ngrams], atol=1e-5)


def test_bare_models_take_words_or_bring_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("kenlm")
    arpa = open_scorer(GOLDEN / "words.arpa", LABELS, alpha=0.5)
    assert arpa.lexicon is not None
    assert (arpa.alpha, arpa.beta, set(arpa.lexicon.words(LABELS))) == (0.5, 0.0, WORDS)
    binary = bare(GOLDEN / "words.scorer", tmp_path)
    assert open_scorer(binary, LABELS).lexicon is None
    chosen = open_scorer(binary, LABELS, words=["two", "naïve"])
    assert chosen.lexicon is not None
    assert (list(chosen.lexicon.words(LABELS)), chosen.left_out) == (["two"], ("naïve",))
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == [f"{binary}: 1 words that the alphabet cannot spell are left out: 'naïve'"]
    with pytest.raises(VocabularyError, match="no word of the list"):
        open_scorer(binary, LABELS, words=["Ö"])
    with pytest.raises(ConfigError, match="brings its own words"):
        open_scorer(GOLDEN / "words.scorer", LABELS, words=["two"])
    with pytest.raises(ConfigError) as caught:
        open_scorer(GOLDEN / "words.scorer", LABELS, alpha=np.nan, beta=np.inf)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_arpa_file_brings_its_words(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    plain, path = GOLDEN / "words.arpa", tmp_path / "words.arpa.z"
    path.write_bytes(compress(plain.read_bytes()))
    assert language_model_module.arpa_words(path) == language_model_module.arpa_words(plain)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(FormatError, match="the language model cannot be read"):
        language_model_module.arpa_words(path)


def test_the_arpa_file_of_kenlms_own_tests(fixtures: Path) -> None:
    pytest.importorskip("kenlm")
    path = fixtures / "fixtures/lm/kenlm-test.arpa"
    scorer, reference = open_scorer(path, ENGLISH), Arpa(path)
    assert scorer.model.order == 5
    assert scorer.left_out == (",", ".")
    for ngram in [("looking", "on", "a", "little", "the"), ("looking", "on"), ("the", "loin"), ("</s>",), ("and",)]:
        assert scorer.model.log_prob(ngram) == pytest.approx(reference.log_prob(ngram), abs=1e-5)


def test_files_that_are_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="no such language model"):
        open_scorer(tmp_path / "none", LABELS)
    (tmp_path / "text").write_text("zero one two")
    with pytest.raises(FormatError, match="without its word list"):
        write_package(tmp_path / "x.scorer", tmp_path / "text", ["two"], LABELS, alpha=1, beta=1)
    with pytest.raises(FormatError, match="already"):
        write_package(tmp_path / "x.scorer", GOLDEN / "words.scorer", ["two"], LABELS, alpha=1, beta=1)
    assert not (tmp_path / "x.scorer").exists()
    monkeypatch.setitem(__import__("sys").modules, "kenlm", None)
    with pytest.raises(MissingExtra, match=r"warmstart\[lm\]"):
        language_model_module.KenLM(GOLDEN / "words.arpa")


def test_kenlm_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    pytest.importorskip("kenlm")
    (tmp_path / "text").write_text("zero one two")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text", "empty"):
        with pytest.raises(FormatError, match="KenLM cannot read") as caught:
            open_scorer(tmp_path / name, LABELS)
        assert caught.value.where == str(tmp_path / name)
