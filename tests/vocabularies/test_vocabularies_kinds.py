"""Every kind of vocabulary: round trips, files, identity, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from warmstart.errors import VocabularyError
from warmstart.vocabularies.characters import CharacterVocabulary
from warmstart.vocabularies.config import VocabularyConfig, build_vocabulary
from warmstart.vocabularies.load import difference, load_vocabulary, parse_vocabulary
from warmstart.vocabularies.marian_yaml import MarianVocabulary
from warmstart.vocabularies.sentencepiece import SentencePieceVocabulary
from warmstart.vocabularies.tokens import TokenVocabulary

LINES = ["Kyiv and Lviv", "Minsk, Brest", "Gomel and Lida", "Odesa", "a long river and a lake", "Vilnius to Minsk"]


@pytest.fixture(scope="module")
def pieces() -> SentencePieceVocabulary:
    return SentencePieceVocabulary.train(LINES * 5, 30)


def test_characters_come_by_falling_count_then_code_point() -> None:
    vocabulary = CharacterVocabulary.train(["bba ", "a c"])
    assert vocabulary.tokens == ("</s>", "<unk>", "▁", "a", "b", "c")
    assert CharacterVocabulary.train(["bba ", "a c"], min_count=2).tokens == ("</s>", "<unk>", "▁", "a", "b")
    assert vocabulary.encode("a cz▁") == [3, 2, 5, 1, 1]
    assert vocabulary.decode([3, 2, 5, 1]) == "a c\ufffd"


def test_no_token_of_characters_spells_a_special_row() -> None:
    vocabulary = CharacterVocabulary.train(["</s><unk>"])
    assert 0 not in vocabulary.encode("</s><unk>")
    assert vocabulary.decode(vocabulary.encode("</s>")) == "</s>"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")), min_size=1))
def test_trained_characters_spell_their_text_and_survive_their_file(lines: list[str]) -> None:
    if not any(lines):
        return
    vocabulary = CharacterVocabulary.train(lines)
    assert [vocabulary.decode(vocabulary.encode(line)) for line in lines] == lines
    loaded = parse_vocabulary(vocabulary.file()[1])
    assert (loaded.tokens, loaded.fingerprint) == (vocabulary.tokens, vocabulary.fingerprint)


def test_special_rows_elsewhere_survive_the_file() -> None:
    loaded = parse_vocabulary(CharacterVocabulary(["a", "<unk>", "</s>"], eos_id=2, unk_id=1).file()[1])
    assert (loaded.eos_id, loaded.unk_id, loaded.encode("a")) == (2, 1, [0])


@pytest.mark.parametrize("tokens", [["</s>", "<unk>", "ab"], ["</s>", "<unk>", "a", "a"], ["</s>"], ["</s>", "", " "]])
def test_bad_characters_are_refused(tokens: list[str]) -> None:
    with pytest.raises(VocabularyError):
        CharacterVocabulary(tokens)


def test_sentencepiece_trains_as_asked_and_survives_its_file(pieces: SentencePieceVocabulary, tmp_path: Path) -> None:
    assert (len(pieces), pieces.eos_id, pieces.unk_id) == (30, 0, 1)
    assert pieces.tokens[:2] == ("</s>", "<unk>")
    for line in LINES:
        ids = pieces.encode(line)
        assert pieces.unk_id not in ids
        assert pieces.decode(ids) == line
    suffix, content = pieces.file()
    path = tmp_path / f"v{suffix}"
    path.write_bytes(content)
    loaded = load_vocabulary(path)
    assert loaded.kind == "sentencepiece"
    assert loaded.fingerprint == pieces.fingerprint
    assert loaded.encode(LINES[0]) == pieces.encode(LINES[0])


def test_sentencepiece_too_many_pieces_is_one_clear_error() -> None:
    with pytest.raises(VocabularyError, match="5000 pieces"):
        SentencePieceVocabulary.train(["a b"], 5000)


@pytest.mark.parametrize("part", [slice(None, -7), slice(None, 300), slice(40, None)])
def test_damaged_sentencepiece_is_refused(pieces: SentencePieceVocabulary, part: slice, tmp_path: Path) -> None:
    path = tmp_path / "vocab.spm"
    path.write_bytes(pieces.file()[1][part])
    with pytest.raises(VocabularyError) as caught:
        load_vocabulary(path)
    assert caught.value.where == str(path)


TOKENS = ["y", "no", "1", "~", "null", "true", "1e3", "0x1", "-", "'", '"', "\\", ":", "#", "[", "{", "&", "*", "!"]


def test_yaml_words_stay_strings() -> None:
    text = '</s>: 0\n<unk>: 1\ny: 2\nno: 3\n1: 4\n~: 5\nnull: 6\n"\'": 7\n.: 8\n1.0: 9\n'
    assert MarianVocabulary.parse(text).tokens == ("</s>", "<unk>", "y", "no", "1", "~", "null", "'", ".", "1.0")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" \n"), min_size=1), unique=True))
def test_marian_file_reads_back_equal(tokens: list[str]) -> None:
    tokens = [t for t in tokens if t not in ("</s>", "<unk>", *TOKENS)]
    vocabulary = MarianVocabulary(["</s>", "<unk>", *TOKENS, *tokens])
    assert parse_vocabulary(vocabulary.file()[1]).tokens == vocabulary.tokens


def test_a_marian_file_that_was_read_is_written_as_it_was() -> None:
    text = '"</s>": 0\n"<unk>": 1\n"Київ": 2\n'
    assert MarianVocabulary.parse(text).file() == MarianVocabulary(["</s>", "<unk>", "Київ"]).file()
    assert MarianVocabulary.parse(text).file()[1].decode("utf-8") == text


@pytest.mark.parametrize("tokens", [["Київ", "😀", ""], TOKENS, ["\ud800", "\n", "\u2028"]])
def test_a_file_of_tokens_is_json_a_token_a_line(tokens: list[str]) -> None:
    vocabulary = TokenVocabulary(["</s>", "<unk>", *tokens], files={"name": b"content"})
    content = vocabulary.file()[1]
    assert json.loads(content)["tokens"] == list(vocabulary.tokens)
    assert parse_vocabulary(content).file()[1] == content
    lines = content.decode("utf-8").split("\n")
    assert lines[1:4] == [
        '"tokens": ["</s>",',
        '"<unk>",',
        json.dumps(tokens[0], ensure_ascii=tokens[0] == "\ud800") + ",",
    ]


def test_marian_json_is_read_too() -> None:
    vocabulary = parse_vocabulary(b'{"</s>": 0, "<unk>": 1, "\\ud83d\\ude00": 2}')
    assert vocabulary.tokens == ("</s>", "<unk>", "😀")


def test_a_tokenizer_of_transformers_is_named_and_not_shown() -> None:
    """Its tokens are a hundred thousand, none of which has a row as Marian writes them."""
    content = {"version": "1.0", "added_tokens": [], "model": {"vocab": {"a": 0}}}
    with pytest.raises(VocabularyError, match="a tokenizer of transformers") as error:
        parse_vocabulary(json.dumps(content).encode())
    assert not error.value.problems


def test_marian_text_is_cut_at_spaces_only() -> None:
    vocabulary = MarianVocabulary(["</s>", "<unk>", "a\u00a0b", "c"])
    assert vocabulary.encode(" a\u00a0b  c d ") == [2, 3, 1]
    assert vocabulary.decode([3, 2]) == "c a\u00a0b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("</s>: 0\n<unk>: 1\na: 2\na: 3\n", "'a' appears twice"),
        ("</s>: 0\n<unk>: 1\na: 1\n", "row 1 has two tokens"),
        ("</s>: 0\n<unk>: 1\na: 4\n", "no token for row 2"),
        ("</s>: 0\n<unk>: x\n", "not a whole number"),
        ("</s>: 0\n<unk>: -1\n", "not a whole number"),
        ("</s>: 0\n<unk>: 99999999999999999999\n", "not a whole number"),
        ('{"</s>": 0, "<unk>": "1"}', "not a whole number"),
        ("</s>: 0\na: 1\n", "no row for <unk>"),
        ("</s>\n<unk>\nthe\n", "plain list"),
        ("</s>: [0]\n<unk>: 1\n", "nested value in line 1"),
        ("<!DOCTYPE html>\n<html><head>\n", "plain list"),
        ('{"kind": "morse", "tokens": []}', "morse"),
        ('{"kind": "characters", "tokens": 3}', "not a list of strings"),
        ('{"kind": "characters", "tokens": ["</s>", "<unk>"], "eos": 0}', "unknown keys"),
    ],
)
def test_bad_vocabulary_files_say_what_and_where(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "vocab.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(VocabularyError) as caught:
        load_vocabulary(path)
    assert message in str(caught.value)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("content", [b"", b"  \n", b"\xff\xfe\xfa"])
def test_empty_and_binary_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vocab"
    path.write_bytes(content)
    with pytest.raises(VocabularyError):
        load_vocabulary(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="cannot read"):
        load_vocabulary(tmp_path / "none")


def test_permuted_vocabulary_of_equal_size_is_another_one() -> None:
    a, b = (CharacterVocabulary(["</s>", "<unk>", *letters]) for letters in ("abc", "acb"))
    assert a.fingerprint != b.fingerprint
    assert difference(a, b) == "5 tokens, 5 shared; first difference in row 3 ('b' and 'c')"
    longer = CharacterVocabulary(["</s>", "<unk>", *"abcd"])
    assert difference(a, longer) == "5 and 6 tokens, 5 shared; the same up to row 5, where only one has 'd'"
    assert difference(a, CharacterVocabulary(a.tokens)) == "the same 5 tokens in the same rows"
    assert a.fingerprint == CharacterVocabulary(a.tokens).fingerprint


def test_configured_vocabularies(tmp_path: Path) -> None:
    characters = build_vocabulary(VocabularyConfig(type="characters", min_count=2), ["aab"])
    assert characters.tokens == ("</s>", "<unk>", "a")
    path = tmp_path / "v.json"
    path.write_bytes(characters.file()[1])
    assert json.loads(path.read_text()) == {"kind": "characters", "tokens": ["</s>", "<unk>", "a"]}
    assert build_vocabulary(VocabularyConfig(type="file", path=path), []).fingerprint == characters.fingerprint
    assert len(build_vocabulary(VocabularyConfig(type="sentencepiece", size=30), LINES * 5)) == 30
    with pytest.raises(VocabularyError, match="inherit"):
        build_vocabulary(VocabularyConfig(type="inherit"), [])


@pytest.mark.parametrize(
    "config",
    [
        {"type": "sentencepiece"},
        {"type": "characters", "size": 10},
        {"type": "file"},
        {"type": "inherit", "path": "x"},
        {"type": "inherit", "min_count": 1},
        {"type": "words"},
        {"type": "characters", "mincount": 1},
    ],
)
def test_impossible_vocabulary_configurations(config: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VocabularyConfig.model_validate(config)


def test_vocabularies_that_marian_wrote(fixtures: Path) -> None:
    names = fixtures / "fixtures/marian-en-ru-names/vocab.ru.yml"
    vocabulary = load_vocabulary(names)
    assert (len(vocabulary), vocabulary.eos_id, vocabulary.unk_id) == (38, 0, 1)
    assert vocabulary.tokens[34:] == ("’", "щ", "'", ".")
    assert vocabulary.encode("а и ё") == [2, 3, 31]
    assert parse_vocabulary(vocabulary.file()[1]).fingerprint == vocabulary.fingerprint
    for side, name in (("ar", "test.ar"), ("en", "test.greedy.out")):
        folder = fixtures / "fixtures/marian-ar-en-translit"
        vocabulary = load_vocabulary(folder / f"vocab.{side}.yml")
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            ids = vocabulary.encode(line)
            assert vocabulary.unk_id not in ids or side == "ar"
            if vocabulary.unk_id not in ids:
                assert vocabulary.decode(ids) == line


def test_sentencepiece_that_marian_trained(fixtures: Path) -> None:
    vocabulary = load_vocabulary(fixtures / "fixtures/marian-en-de-spm/vocab.spm")
    assert (vocabulary.kind, len(vocabulary), vocabulary.eos_id, vocabulary.unk_id) == ("sentencepiece", 2000, 0, 1)
    assert vocabulary.decode(vocabulary.encode("Hello world.")) == "Hello world."
