"""Text, vocabularies and lists of recordings at URLs."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from server import Server

from speech_models import write_audio
from warmstart.data.config import SplitConfig
from warmstart.data.speech.config import SpeechSplitConfig
from warmstart.data.text import read_parallel
from warmstart.errors import DataError, SourceError
from warmstart.vocabularies.alphabet import Alphabet
from warmstart.vocabularies.load import VocabularyConfig, build_vocabulary


@pytest.fixture
def recordings(tmp_path: Path) -> bytes:
    """A tar file of two recordings."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name in ("one", "two"):
            write_audio(tmp_path / f"{name}.wav", 0.2)
            (tmp_path / f"{name}.txt").write_text(name)
            archive.add(tmp_path / f"{name}.wav", f"{name}.wav")
            archive.add(tmp_path / f"{name}.txt", f"{name}.txt")
    return made.getvalue()


def test_recordings_in_a_tar_file_at_a_url(server: Server, cache: Path, recordings: bytes) -> None:
    url = server.put("/clips.tar", recordings)
    config = SpeechSplitConfig.model_validate({"files": [url]})
    assert config.model_dump(mode="json")["files"] == [url]
    assert not server.requests  # a configuration alone asks nobody
    for _ in range(2):
        found = config.examples()
        assert [example.transcript for example in found] == ["one", "two"]
        assert all(example.audio.path.is_relative_to(cache) for example in found)
        assert found[0].audio.read()[:4] == b"RIFF"
    assert server.sent("/clips.tar") == len(recordings)  # the second time it is there


def test_a_csv_at_a_url_needs_the_folder_of_its_recordings(server: Server, cache: Path, tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 0.2)
    url = server.put("/clips.csv", b"wav_filename,transcript\na.wav,hello\n")
    with pytest.raises(DataError, match="does not say where its recordings are") as caught:
        SpeechSplitConfig.model_validate({"files": url}).examples()
    assert caught.value.where == url
    (example,) = SpeechSplitConfig.model_validate({"files": url, "folder": tmp_path}).examples()
    assert (example.transcript, example.audio.path) == ("hello", tmp_path / "a.wav")


def test_all_lists_that_cannot_be_had_are_one_error(server: Server, cache: Path, tmp_path: Path) -> None:
    missing = server.put("/there.tar", b"").replace("there", "elsewhere")
    files = [missing, tmp_path / "none.tar", "https://x.org/list.csv"]
    with pytest.raises(DataError, match="lists of recordings cannot be used") as caught:
        SpeechSplitConfig.model_validate({"files": files}).examples()
    assert [problem.where for problem in caught.value.problems] == [str(file) for file in files]
    with pytest.raises(ValueError, match="recordings are listed in files called"):
        SpeechSplitConfig.model_validate({"files": "https://x.org/a.zip?name=a.tar"})


def test_text_and_vocabularies_at_urls(server: Server, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "target.txt").write_text("eins\nzwei\n")
    url = server.put("/source.txt", b"one\ntwo\n")
    split = SplitConfig.model_validate({"source": url, "target": tmp_path / "target.txt"})
    assert list(read_parallel(split.files())) == [("one", "eins"), ("two", "zwei")]
    letters = server.put("/alphabet.txt", b"a\nb\n")
    config = VocabularyConfig.model_validate({"type": "alphabet", "path": letters})
    alphabet = build_vocabulary(config, [])
    assert isinstance(alphabet, Alphabet)
    assert list(alphabet.labels) == ["a", "b"]
    gone = SplitConfig.model_validate({"tsv": url.replace("source", "gone")})
    with pytest.raises(SourceError):
        list(read_parallel(gone.files()))
