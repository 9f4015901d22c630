"""Text, vocabularies and lists of recordings at URLs."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from server import Fault, Server

from speech_models import write_audio, write_model
from warmstart import api
from warmstart.data.config import SplitConfig
from warmstart.data.speech.augment.parse import parse_augmentations
from warmstart.data.speech.augment.signal import Overlay
from warmstart.data.speech.config import SpeechDataConfig, SpeechSplitConfig
from warmstart.data.speech.split import encode_speech
from warmstart.data.text import read_parallel
from warmstart.errors import DataError, SourceError
from warmstart.models.deepspeech.mfcc import Mfcc
from warmstart.sources.policy import using
from warmstart.sources.uri import below, directory_of
from warmstart.vocabularies.alphabet import Alphabet
from warmstart.vocabularies.config import VocabularyConfig, build_vocabulary


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


def test_a_csv_at_a_url_names_recordings_beside_it_or_in_a_folder(server: Server, cache: Path, tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 0.2)
    data = (tmp_path / "a.wav").read_bytes()
    server.put("/lists/wav/a 1%#.wav", data)
    elsewhere = server.put("/elsewhere/b.wav", data)
    url = server.put("/lists/clips.csv", f"wav_filename,transcript\nwav/a 1%#.wav,hello\n{elsewhere},you\n".encode())
    beside, other = SpeechSplitConfig.model_validate({"files": f"{url}?token=secret"}).examples()
    assert beside.audio.path == f"{url.removesuffix('clips.csv')}wav/a%201%25%23.wav?token=secret"
    assert "secret" not in f"{beside.where} {beside.audio}"
    assert other.audio.path == elsewhere
    assert not any(request.path.endswith(".wav") for request in server.requests)
    for _ in range(2):
        assert [example.audio.read() for example in (beside, other)] == [data, data]
    assert server.sent("/elsewhere/b.wav") == len(data)  # the second time it is there
    (first, _) = SpeechSplitConfig.model_validate({"files": url, "folder": tmp_path}).examples()
    assert first.audio.path == tmp_path / "wav" / "a 1%#.wav"
    (first, _) = SpeechSplitConfig.model_validate({"files": url, "folder": elsewhere.removesuffix("/b.wav")}).examples()
    assert first.audio.path == elsewhere.replace("b.wav", "wav/a%201%25%23.wav")


def test_secrets_of_urls_of_data_are_not_stored(server: Server) -> None:
    config = SpeechDataConfig.model_validate(
        {
            "tasks": {"a": {"splits": {"train": {"files": "https://h/a.csv?token=s3cret", "folder": "s3://b/c"}}}},
            "augment": ["overlay[source=https://u:s3cret@h/noise.csv]"],
        }
    )
    assert "s3cret" not in config.model_dump_json()
    assert config.tasks["a"].splits["train"].files == ("https://h/a.csv?token=s3cret",)
    others = SplitConfig.model_validate({"tsv": "https://h/a.tsv?token=s3cret"})
    assert others.model_dump(mode="json", exclude_unset=True) == {"tsv": "https://h/a.tsv?token=***"}


def test_names_of_a_csv_at_a_url_stay_below_it(server: Server, cache: Path) -> None:
    url = server.put("/lists/clips.csv", b"wav_filename,transcript\n../a.wav,a\n/etc/passwd,b\nc.wav,c\n")
    with pytest.raises(DataError, match="2 bad rows") as caught:
        SpeechSplitConfig.model_validate({"files": url}).examples()
    assert [problem.found for problem in caught.value.problems] == ["../a.wav", "/etc/passwd"]


@pytest.mark.parametrize("kind", ["s3", "gs", "hf"])
def test_names_of_a_csv_in_a_bucket_are_below_it(kind: str) -> None:
    place = "hf:owner/name@main" if kind == "hf" else f"{kind}://bucket"
    assert directory_of(f"{place}/lists/clips.csv") == f"{place}/lists/"
    assert below(f"{place}/lists/", "wav/a 1.wav") == f"{place}/lists/wav/a 1.wav"


def test_recordings_that_cannot_be_fetched_are_one_error_or_left_out(
    server: Server, cache: Path, tmp_path: Path
) -> None:
    write_audio(tmp_path / "a.wav", 1.0)
    url = server.put("/a.wav", (tmp_path / "a.wav").read_bytes())
    gone, foreign = url.replace("a.wav", "gone.wav"), "hdfs://cluster/b.wav"
    clips = tmp_path / "clips.csv"
    clips.write_text("wav_filename,transcript\n" + "".join(f"{name},a\n" for name in (url, gone, foreign, "none.wav")))
    examples = SpeechSplitConfig.model_validate({"files": clips}).examples()
    alphabet = Alphabet("ab")
    with pytest.raises(DataError, match="3 recordings cannot be read") as caught:
        encode_speech(examples, alphabet, Mfcc(), tmp_path / "features")
    assert [problem.where for problem in caught.value.problems] == [gone, foreign, str(tmp_path / "none.wav")]
    assert "hf:" in str(caught.value.problems[1])  # what can be read from
    asked = len(server.requests)
    assert asked <= 6  # nobody looks for a model where a recording is not
    split = encode_speech(examples, alphabet, Mfcc(), tmp_path / "features", unreadable="drop")
    assert [example.where for example in split.examples] == [url]
    assert [dropped.reason for dropped in split.dropped] == ["unreadable"] * 3
    before = len(server.requests)
    assert len(split.samples(0)) == 16_000
    assert len(server.requests) == before  # while it is trained with, nobody is asked
    with using(offline=True):
        split = encode_speech(examples[:1], alphabet, Mfcc(), tmp_path / "features")
        assert len(split) == 1
        with pytest.raises(DataError, match="cannot be read"):
            encode_speech(examples[:2], alphabet, Mfcc(), tmp_path / "features")
    assert len(server.requests) == before


def test_a_server_that_does_not_answer_is_not_asked_for_every_recording(
    server: Server, cache: Path, tmp_path: Path
) -> None:
    clips = tmp_path / "clips.csv"
    clips.write_text("wav_filename,transcript\n" + "".join(f"{server.url}/{i}.wav,a\n" for i in range(100)))
    for i in range(100):
        server.faults[f"/{i}.wav"] = [Fault(hang_up=True)] * 50
    examples = SpeechSplitConfig.model_validate({"files": clips}).examples()
    with pytest.raises(SourceError, match="the download does not succeed"):
        encode_speech(examples, Alphabet("ab"), Mfcc(), tmp_path / "features", unreadable="drop")
    assert len({request.path for request in server.requests}) < 20


def test_a_recording_at_a_url_is_transcribed(server: Server, cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    write_model(tmp_path / "model")
    write_audio(tmp_path / "a.wav", 1.0)
    url = server.put("/a.wav", (tmp_path / "a.wav").read_bytes())
    there, here = api.transcribe(tmp_path / "model", [url, tmp_path / "a.wav"])
    assert (there["file"], there["text"]) == (url, here["text"])
    assert there["text"]
    (tmp_path / "list.csv").write_text(f"wav_filename,transcript\n{url},abc\n")
    local = api.evaluate(tmp_path / "model", tmp_path / "list.csv")
    listed = server.put("/list.csv", b"wav_filename,transcript\na.wav,abc\n")
    assert api.evaluate(tmp_path / "model", listed) == {listed: local[str(tmp_path / "list.csv")]}
    (gone,) = api.transcribe(tmp_path / "model", [server.url + "/none.wav?token=secret"])
    assert "the audio cannot be fetched" in gone["error"]
    assert "secret" not in str(gone)


def test_what_is_overlaid_may_lie_at_urls(server: Server, cache: Path, tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 1.0)
    server.put("/noise/a.wav", (tmp_path / "a.wav").read_bytes())
    url = server.put("/noise/noise.csv", b"wav_filename\na.wav\n")
    (overlay,) = parse_augmentations([f"overlay[source={url},snr=10]"])
    assert isinstance(overlay, Overlay)
    assert not overlay.problems(Mfcc())
    assert overlay.recordings[0].audio.file().is_relative_to(cache)
    (other,) = parse_augmentations(
        [f"overlay[source={server.put('/noise/gone.csv', b'wav_filename' + chr(10).encode() + b'b.wav')}]"]
    )
    assert [problem.where for problem in other.problems(Mfcc())][1:] == [url.replace("noise.csv", "b.wav")]


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
