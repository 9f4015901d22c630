"""Alphabets: Coqui's file, characters of transcripts, bytes; what has no label is listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from warmstart.errors import VocabularyError
from warmstart.vocabularies.alphabet import BLANK, Alphabet
from warmstart.vocabularies.config import VocabularyConfig, build_vocabulary
from warmstart.vocabularies.load import load_alphabet, parse_vocabulary

TEXT = "# a comment\n \na\nb\n\\#\n\nng\nя\n"
LABELS = (" ", "a", "b", "#", "ng", "я")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_coquis_file_is_read_with_every_end_of_line(end: str, last: bool) -> None:
    text = TEXT.replace("\n", end)
    alphabet = Alphabet.from_text(text if last else text.removesuffix(end))
    assert alphabet.labels == LABELS
    assert alphabet.tokens == (*LABELS, BLANK)
    assert alphabet.blank_id == len(alphabet) - 1 == 6


def test_unusual_characters_do_not_end_a_line() -> None:
    assert Alphabet.from_text("a\n\x0b\n\u2028\n\x85\n").labels == ("a", "\x0b", "\u2028", "\x85")


def test_the_mark_of_byte_order_is_no_label() -> None:
    assert Alphabet.from_text("\ufeff# comment\na\n").labels == ("a",)


def test_text_is_cut_by_code_point_and_never_becomes_a_longer_label() -> None:
    alphabet = Alphabet.from_text(TEXT)
    assert alphabet.encode("a #я") == [1, 0, 3, 5]
    with pytest.raises(VocabularyError, match="lacks 2 characters"):
        alphabet.encode("ng")
    assert alphabet.decode([4, 6, 1, 6]) == "nga"


def test_an_alphabet_returns_from_its_text_and_from_its_file() -> None:
    alphabet = Alphabet.from_text(TEXT)
    assert Alphabet.from_text(alphabet.to_text()).tokens == alphabet.tokens
    returned = parse_vocabulary(alphabet.file()[1])
    assert isinstance(returned, Alphabet)
    assert (returned.tokens, returned.utf8, returned.fingerprint) == (alphabet.tokens, False, alphabet.fingerprint)


def test_labels_that_the_text_cannot_hold_are_refused() -> None:
    for label in ("#a", "a\nb", "\\#"):
        with pytest.raises(VocabularyError, match="cannot hold these labels"):
            Alphabet(["x", label]).to_text()


def test_byte_mode_has_the_same_labels_for_every_language_and_returns_as_itself() -> None:
    alphabet = Alphabet.of_bytes()
    assert (len(alphabet), alphabet.blank_id, alphabet.utf8) == (256, 255, True)
    assert alphabet.encode("é") == [194, 168]
    assert alphabet.decode([194, 168, 255]) == "é"
    assert alphabet.decode([194]) == "\ufffd"
    returned = parse_vocabulary(alphabet.file()[1])
    assert isinstance(returned, Alphabet)
    assert (returned.utf8, returned.fingerprint) == (True, alphabet.fingerprint)
    with pytest.raises(VocabularyError, match=r"U\+0000"):
        alphabet.encode("a\0")
    with pytest.raises(VocabularyError, match="bytes_output_mode"):
        alphabet.to_text()


def test_every_character_outside_is_listed_at_once() -> None:
    with pytest.raises(VocabularyError) as caught:
        Alphabet.of(["abc"]).check(["abx", "xü", "c"])
    assert [problem.what for problem in caught.value.problems] == [
        "'x' (U+0078) in 2 transcripts",
        "'ü' (U+00FC) in 1 transcripts",
    ]
    Alphabet.of(["abc"]).check(["cab", ""])


def test_labels_that_are_none_are_all_named() -> None:
    with pytest.raises(VocabularyError) as caught:
        Alphabet.from_text("a\nb\na\n<blank>\n", "alphabet.txt")
    assert caught.value.where == "alphabet.txt"
    assert [p.what for p in caught.value.problems[1:]] == [
        "the label 'a' is there twice",
        "the label '<blank>' is there twice",
    ]
    with pytest.raises(VocabularyError, match="needs a label"):
        Alphabet([])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"kind": "alphabet", "labels": [1]}', "list of strings"),
        ('{"kind": "alphabet", "labels": ["a"], "utf8": true}', "has 'labels', or"),
        ('{"kind": "alphabet", "utf8": false}', "has 'labels', or"),
    ],
)
def test_files_that_are_no_alphabet(content: str, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        parse_vocabulary(content.encode())


def test_configured_alphabets(tmp_path: Path) -> None:
    path = tmp_path / "alphabet.txt"
    path.write_text(TEXT, "utf-8")
    assert build_vocabulary(VocabularyConfig(type="alphabet", path=path), []).tokens == (*LABELS, BLANK)
    assert build_vocabulary(VocabularyConfig(type="alphabet"), ["ba", "c b"]).tokens == (" ", "a", "b", "c", BLANK)
    assert build_vocabulary(VocabularyConfig(type="bytes"), []).tokens == Alphabet.of_bytes().tokens
    with pytest.raises(ValueError, match="path goes with"):
        VocabularyConfig(type="bytes", path=path)
    saved = tmp_path / "a.json"
    saved.write_bytes(Alphabet.of(["xy"]).file()[1])
    assert load_alphabet(saved).labels == ("x", "y")
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n")
    with pytest.raises(VocabularyError, match="not UTF-8"):
        load_alphabet(tmp_path / "latin.txt")
    with pytest.raises(VocabularyError, match="cannot read"):
        load_alphabet(tmp_path / "none.txt")


def test_the_alphabet_of_a_model_that_coqui_trained(fixtures: Path) -> None:
    alphabet = load_alphabet(fixtures / "fixtures/coqui-digits-en/alphabet.txt")
    assert len(alphabet) == 29
    assert (alphabet.labels[0], alphabet.labels[-1]) == (" ", "'")
