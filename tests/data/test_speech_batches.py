"""Recordings to batches: what is kept, the cache, the order."""

from __future__ import annotations

import multiprocessing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from speech_files import make_csv, tone, wav_bytes

from warmstart.data.plan import Position
from warmstart.data.speech.batches import MixedSpeech, SortedSpeech, sequential_speech
from warmstart.data.speech.config import SpeechDataConfig
from warmstart.data.speech.csv import read_csv
from warmstart.data.speech.split import SpeechSplit, encode_speech, frames_needed
from warmstart.errors import DataError
from warmstart.models.deepspeech.mfcc import Mfcc
from warmstart.vocabularies.alphabet import Alphabet

ALPHABET = Alphabet(" abcdefghijklmnopqrstuvwxyz")


def make_split(tmp_path: Path, n: int = 40, name: str = "train", **options: object) -> SpeechSplit:
    random = np.random.default_rng(len(name) + n)
    clips = [(float(s), "abc"[: 1 + i % 3]) for i, s in enumerate(random.uniform(0.15, 0.6, n))]
    path = make_csv(tmp_path, clips, f"{name}.csv")
    return encode_speech(read_csv(path), ALPHABET, Mfcc(), tmp_path / "cache", **options)  # type: ignore[arg-type]


def test_a_batch_holds_its_examples(tmp_path: Path) -> None:
    split = make_split(tmp_path)
    stream = MixedSpeech([split], batch_frames=120, window=25, seed=3)
    seen: list[int] = []
    for position, batch in islice(stream.iterate(), 200):
        if position.epoch and position != Position(1, 0, 0):
            break
        seen += batch.indices.tolist()
        assert batch.features.dtype == np.float32
        assert batch.features.shape[0] * batch.features.shape[1] <= 120
        for row, n, i in zip(batch.features, batch.feature_lengths, batch.indices.tolist(), strict=True):
            expected = Mfcc()(split.samples(i))
            np.testing.assert_allclose(row[:n], expected, rtol=0, atol=1e-5)
            assert not row[n:].any()
        for row, n, i in zip(batch.labels, batch.label_lengths, batch.indices.tolist(), strict=True):
            assert ALPHABET.decode(row[:n].tolist()) == split.examples[i].transcript
    assert sorted(seen) == list(range(len(split)))


def test_seeking_equals_iterating(tmp_path: Path) -> None:
    splits = [make_split(tmp_path), make_split(tmp_path, 13, "other")]
    for stream in (
        MixedSpeech(splits, batch_frames=120, rates=[3, 1], window=20, seed=5),
        SortedSpeech(splits, batch_size=4, seed=5),
    ):
        steps = list(islice(stream.iterate(), 60))
        assert steps[-1][0].epoch >= 1
        for start in (0, 7, 30):
            for (after, batch), (again, other) in zip(
                steps[start + 1 : start + 12], stream.iterate(steps[start][0]), strict=False
            ):
                assert after == again
                assert batch.features.tobytes() == other.features.tobytes()
                assert batch.labels.tolist() == other.labels.tolist()
        first = [batch.indices.tolist() for _, batch in steps]
        assert first != [batch.indices.tolist() for _, batch in islice(stream.reordered(1).iterate(), 60)]


def test_sorted_is_coquis_order(tmp_path: Path) -> None:
    split = make_split(tmp_path, 11)
    stream = SortedSpeech([split], batch_size=4, shuffle_from=1, seed=1)
    orders = [[indices.tolist() for _, indices in stream.window_batches(epoch, 0)] for epoch in range(4)]
    by_size = np.argsort([example.size for example in split.examples], kind="stable")
    assert orders[0] == [by_size[:4].tolist(), by_size[4:8].tolist()]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert any(order != orders[0] for order in orders[1:])
    never = SortedSpeech([split], batch_size=4, shuffle_from=None)
    assert [indices.tolist() for _, indices in never.window_batches(9, 0)] == orders[0]
    assert [after.k for after, _ in islice(stream.iterate(), 4)] == [1, 0, 1, 0]
    with pytest.raises(DataError, match="fewer recordings"):
        SortedSpeech([split], batch_size=12)


def test_the_longest_batch_is_the_largest(tmp_path: Path) -> None:
    split = make_split(tmp_path)
    stream = MixedSpeech([split], batch_frames=120, batch_size=3)
    assert int(stream.longest().feature_lengths.max()) == int(split.frames.max())
    assert all(len(batch.indices) <= 3 for _, batch in islice(stream.iterate(), 30))


def test_evaluation_sees_everything_once(tmp_path: Path) -> None:
    split = make_split(tmp_path)
    batches = list(sequential_speech(split, batch_frames=60))
    assert sorted(np.concatenate([batch.indices for batch in batches]).tolist()) == list(range(len(split)))
    lengths = np.concatenate([batch.feature_lengths for batch in batches])
    assert (np.diff(lengths) >= 0).all()
    assert sum(1 for _ in sequential_speech(split, batch_frames=1)) == len(split)


def test_what_cannot_be_learnt_is_left_out_and_named(tmp_path: Path) -> None:
    clips = [(0.5, "ab"), (0.5, "a" * 13), (0.5, "a" * 12), (0.03, "a"), (2.0, "long"), (0.0, "b")]
    path = make_csv(tmp_path, clips)  # half a second is 24 frames: twelve equal letters need 23, thirteen 25
    split = encode_speech(read_csv(path), ALPHABET, Mfcc(), tmp_path / "cache", max_seconds=1.0)
    assert [example.transcript for example in split.examples] == ["ab", "a" * 12]
    assert split.counts == {"too short": 3, "too long": 1}
    lines = "\n".join(split.describe())
    assert "2 recordings" in lines
    assert f"{tmp_path / 'train-1.wav'} (24 frames, its transcript needs 25)" in lines
    assert "max_seconds is 1" in lines


def test_a_recording_is_left_out_by_row_not_by_name(tmp_path: Path) -> None:
    path = make_csv(tmp_path, [(0.5, "ab")])
    path.write_text(path.read_text() + "train-0.wav,1,\n")
    split = encode_speech(read_csv(path), ALPHABET, Mfcc(), tmp_path / "cache", empty_transcripts="drop")
    assert [example.transcript for example in split.examples] == ["ab"]
    assert split.counts == {"without transcript": 1}


def test_frames_needed() -> None:
    assert [frames_needed(np.array(x, np.int32)) for x in ([1], [1, 1], [1, 2, 1], [1, 1, 1, 2])] == [1, 3, 3, 6]


def test_every_transcript_outside_the_alphabet_is_listed(tmp_path: Path) -> None:
    path = make_csv(tmp_path, [(0.5, "ab"), (0.5, "Ärger"), (0.5, "né"), (0.5, " "), (0.5, "Ä")])
    with pytest.raises(DataError) as caught:
        encode_speech(read_csv(path), ALPHABET, Mfcc(), tmp_path / "cache", name="train")
    text = str(caught.value)
    assert "3 transcripts hold characters that the alphabet lacks" in text
    assert "'Ä' (U+00C4) in 2, 'é' (U+00E9) in 1" in text
    assert all(f"train-{i}.wav" in text for i in (1, 2, 3, 4))
    assert "the transcript is empty" in text
    assert not (tmp_path / "cache").exists()


def test_unreadable_recordings(tmp_path: Path) -> None:
    path = make_csv(tmp_path, [(0.5, "ab"), (0.5, "a"), (0.5, "b")])
    (tmp_path / "train-1.wav").write_bytes(b"no audio")
    examples = read_csv(path)
    (tmp_path / "train-2.wav").unlink()
    with pytest.raises(DataError, match="2 recordings cannot be read") as caught:
        encode_speech(examples, ALPHABET, Mfcc(), tmp_path / "cache")
    assert [problem.where for problem in caught.value.problems] == [str(tmp_path / f"train-{i}.wav") for i in (1, 2)]
    split = encode_speech(examples, ALPHABET, Mfcc(), tmp_path / "cache", unreadable="drop")
    assert split.counts == {"unreadable": 2}
    with pytest.raises(DataError, match="no recording left"):
        encode_speech(examples[1:], ALPHABET, Mfcc(), tmp_path / "cache", unreadable="drop")


def test_missing_recordings_are_named_with_what_is_wrong_with_transcripts(tmp_path: Path) -> None:
    """Neither costs anything; audio is not read for it."""
    path = make_csv(tmp_path, [(0.5, "ab"), (0.5, "É"), (0.5, "b")])
    (tmp_path / "train-2.wav").unlink()
    with pytest.raises(DataError) as caught:
        encode_speech(read_csv(path), ALPHABET, Mfcc(), tmp_path / "cache")
    assert [problem.where for problem in caught.value.problems[1:]] == [
        str(tmp_path / f"train-{i}.wav") for i in (1, 2)
    ]
    assert not (tmp_path / "cache").exists()


def test_of_many_bad_recordings_the_first_are_named_and_all_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("wav_filename,transcript\n" + "".join(f"{i}.wav,ab\n" for i in range(120)))
    with pytest.raises(DataError, match="120 recordings cannot be read") as caught:
        encode_speech(read_csv(path), ALPHABET, Mfcc(), tmp_path / "cache")
    assert len(caught.value.problems) == 51
    assert caught.value.problems[-1].what == "and 70 more"


def test_all_splits_are_read_before_anything_is_said(tmp_path: Path) -> None:
    for name in ("train", "validation"):
        make_csv(tmp_path, [(0.5, "ab"), (0.5, "a"), (0.5, "b")], f"{name}.csv")
        (tmp_path / f"{name}-0.wav").unlink()
        (tmp_path / f"{name}-1.wav").write_bytes(b"RIFF no audio")
    splits = {name: {"files": tmp_path / f"{name}.csv"} for name in ("train", "validation")}
    data = SpeechDataConfig.model_validate({"tasks": {"t": {"splits": splits}}})
    with pytest.raises(DataError) as caught:
        data.read_splits(list(splits), ALPHABET, Mfcc(), tmp_path / "cache")
    text = str(caught.value)
    assert all(f"{name}-{i}.wav" in text for name in splits for i in (0, 1))
    assert all(f"{name} of task t cannot be used: 2 recordings cannot be read" in text for name in splits)


def test_the_cache_is_keyed_by_content_and_settings(tmp_path: Path) -> None:
    first = make_split(tmp_path, 5)
    folders = set((tmp_path / "cache").iterdir())
    assert len(folders) == 1
    again = make_split(tmp_path, 5)
    assert set((tmp_path / "cache").iterdir()) == folders
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.features(2), first.features(2))
    examples = read_csv(tmp_path / "train.csv")
    encode_speech(examples, ALPHABET, Mfcc(8000), tmp_path / "cache")
    assert len(set((tmp_path / "cache").iterdir())) == 2
    (tmp_path / "train-0.wav").write_bytes(wav_bytes(tone(0.4, 999)))
    changed = encode_speech(examples, ALPHABET, Mfcc(), tmp_path / "cache")
    assert len(set((tmp_path / "cache").iterdir())) == 3
    assert changed.fingerprint != first.fingerprint


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    first = make_split(tmp_path, 5)
    expected = np.array(first.features(4))
    (folder,) = (tmp_path / "cache").iterdir()
    for name, data in (("features.f32", b"1234"), ("frames.npy", b"nonsense"), ("faults.json", b"[")):
        (folder / name).write_bytes(data)
        np.testing.assert_array_equal(make_split(tmp_path, 5).features(4), expected)


def build(folder: Path) -> str:
    examples = read_csv(folder / "train.csv")
    return encode_speech(examples, ALPHABET, Mfcc(), folder / "cache").fingerprint


def test_two_processes_may_make_one_cache(tmp_path: Path) -> None:
    make_csv(tmp_path, [(0.3, "ab")] * 30)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        prints = pool.map(build, [tmp_path] * 4, chunksize=1)
    assert len(set(prints)) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_configuration(tmp_path: Path) -> None:
    train = make_csv(tmp_path, [(0.3, "ab"), (0.4, "ba"), (0.5, "c")])
    tasks = {"digits": {"splits": {"train": {"files": str(train)}, "validation": {"files": [str(train)], "limit": 2}}}}
    config = SpeechDataConfig.model_validate({"type": "speech", "tasks": tasks})
    assert config.batch_seconds == 160
    assert "".join(config.text("text")) == "abbac"
    splits = {"digits": config.read("digits", "train", Alphabet.of(config.text("text")), Mfcc(), tmp_path / "c")}
    assert len(config.read("digits", "validation", ALPHABET, Mfcc(), tmp_path / "c")) == 2
    stream = config.stream(splits, seed=1)
    assert isinstance(stream, MixedSpeech)
    assert len(next(stream.iterate())[1].indices) == 3
    coqui = SpeechDataConfig.model_validate({"tasks": tasks, "order": "sorted", "batch_size": 2})
    assert isinstance(coqui.stream(splits, seed=1), SortedSpeech)
    with pytest.raises(DataError, match="no task has a split"):
        config.text("text", "test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "sorted"}, "needs a batch_size"),
        ({"order": "sorted", "batch_size": 4, "batch_seconds": 100.0, "window": 3}, "batch_seconds, window changes"),
        ({"shuffle_from": 3}, "goes with order: sorted"),
        ({"batch_seconds": 10}, "max_seconds 60 is more than batch_seconds 10"),
        ({"rates": {"other": 1.0}}, "rates must name every task"),
        ({"batch_sizes": 3}, "Extra inputs"),
        ({"tasks": {"a": {"splits": {"train": {"files": "a.mp3"}}}}}, "listed in files called"),
    ],
)
def test_configurations_that_contradict_themselves(options: dict[str, object], message: str) -> None:
    tasks = {"a": {"splits": {"train": {"files": "a.csv"}}}}
    with pytest.raises(ValidationError, match=message):
        SpeechDataConfig.model_validate({"tasks": tasks, **options})
