"""Recordings that end before what their headers say."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from speech_files import RATE, make_csv, sdb_bytes, tone, wav_bytes

from warmstart.data.speech.audio import read_audio
from warmstart.data.speech.csv import read_csv
from warmstart.data.speech.example import AudioSource
from warmstart.data.speech.sdb import read_sdb
from warmstart.data.speech.split import encode_speech
from warmstart.data.speech.whole import MOST_CHUNKS
from warmstart.errors import DataError
from warmstart.models.deepspeech.mfcc import Mfcc
from warmstart.vocabularies.alphabet import Alphabet

SOUND = tone(1.0)
WAV = wav_bytes(SOUND)
ENCODINGS = [
    *(("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAVEX", "PCM_16"), ("RF64", "PCM_16")),
    *(("W64", "PCM_16"), ("W64", "FLOAT"), ("CAF", "PCM_16"), ("AU", "PCM_24"), ("AU", "ULAW"), ("NIST", "PCM_16")),
    *(
        ("NIST", "ULAW"),
        ("AIFF", "FLOAT"),
        ("AIFF", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
    ),
]


@pytest.mark.parametrize(("name", "subtype"), ENCODINGS)
def test_what_is_cut_off_is_an_error_wherever_the_cut_is(tmp_path: Path, name: str, subtype: str) -> None:
    data = wav_bytes(SOUND, format=name, subtype=subtype)
    assert len(read_audio(data, RATE)) == len(SOUND)
    for size in (len(data) // 2, len(data) * 9 // 10, len(data) - 2):
        (tmp_path / "cut").write_bytes(data[:size])
        for source in (tmp_path / "cut", data[:size]):
            with pytest.raises(DataError, match=r"cut off|damaged") as caught:
                read_audio(source, RATE)
            assert caught.value.where == (str(source) if isinstance(source, Path) else "audio in memory")


@pytest.mark.parametrize("order", ["little", "big"])
def test_the_error_says_both_sizes(order: str) -> None:
    data = wav_bytes(SOUND, endian=order.upper())
    assert data[:4] == {"little": b"RIFF", "big": b"RIFX"}[order]
    with pytest.raises(DataError) as caught:
        read_audio(data[:20_000], RATE)
    assert (caught.value.expected, caught.value.found) == (f"{len(data):,} bytes, as its headers say", "20,000")
    with pytest.raises(DataError, match="cut off"):
        read_audio(data[: len(data) - len(SOUND) * 2], RATE)  # the header alone


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0x7FFF_F000, 0x80000000, 0xFFFFFFFF])
def test_headers_of_streams_are_whole(size: int) -> None:
    """What writers leave who cannot go back: SoX and arecord about 2 GiB, FFmpeg 4."""
    data = bytearray(WAV)
    assert data[36:40] == b"data"
    data[40:44] = data[4:8] = struct.pack("<I", size)
    assert len(read_audio(bytes(data), RATE)) == len(SOUND)


@pytest.mark.parametrize(("kind", "at"), [("WAV", b"data"), ("RF64", b"ds64")])
def test_headers_that_were_never_completed(kind: str, at: bytes) -> None:
    """Of a recorder that was killed. libsndfile takes it for nothing."""
    data = bytearray(wav_bytes(SOUND, format=kind))
    place = data.index(at)
    if kind == "WAV":
        data[place + 4 : place + 8] = bytes(4)
        data[4:8] = struct.pack("<I", 36)
    else:
        data[place + 8 : place + 24] = bytes(16)
    with pytest.raises(DataError, match="never completed") as caught:
        read_audio(bytes(data), RATE)
    assert caught.value.found == f"0, and {len(SOUND) * 2:,} bytes after it"


def test_au_and_sphere_that_do_not_say_how_much_there_is() -> None:
    data = bytearray(wav_bytes(SOUND, format="AU"))
    data[8:12] = b"\xff" * 4
    assert len(read_audio(bytes(data), RATE)) == len(SOUND)
    data[8:12] = bytes(4)
    with pytest.raises(DataError, match="never completed"):
        read_audio(bytes(data), RATE)
    sphere = wav_bytes(SOUND, format="NIST")
    uncounted = sphere.replace(f"sample_count -i {len(SOUND)}\n".encode(), b"")
    uncounted = uncounted[:900] + bytes(len(sphere) - len(uncounted)) + uncounted[900:]
    assert len(read_audio(uncounted, RATE)) == len(SOUND)


def test_an_ogg_stream_that_ends_between_pages_is_a_recording_of_a_stream() -> None:
    whole = wav_bytes(np.tile(SOUND, 20), format="OGG", subtype="VORBIS")
    end = whole.index(b"OggS", len(whole) // 2)
    assert 0 < len(read_audio(whole[:end], RATE)) < 20 * len(SOUND)


def test_no_samples_and_something_after_them() -> None:
    empty = bytearray(wav_bytes(SOUND[:0]) + b"LIST\x04\x00\x00\x00INFO")
    empty[4:8] = struct.pack("<I", len(empty) - 8)
    assert len(read_audio(bytes(empty), RATE)) == 0


def test_what_follows_the_samples_may_be_anything() -> None:
    odd = wav_bytes(SOUND[:101], subtype="PCM_U8")
    assert len(odd) % 2 == 0
    assert len(read_audio(odd[:-1], RATE)) == 101  # many writers leave out the byte that makes it even
    assert len(read_audio(WAV + b"LIST\x10\x00\x00\x00and", RATE)) == len(SOUND)
    ogg = wav_bytes(SOUND, format="OGG", subtype="VORBIS")
    assert len(read_audio(ogg + b"TAG" + bytes(125), RATE)) == len(SOUND)


def test_chunks_before_the_samples_are_passed_over() -> None:
    for count in (1, 2, MOST_CHUNKS - 3):
        data = WAV[:36] + b"junk\x03\x00\x00\x00abc\x00" * count + WAV[36:]
        assert len(read_audio(data, RATE)) == len(SOUND)
        with pytest.raises(DataError, match="cut off"):
            read_audio(data[:-2], RATE)


def test_hostile_chunks_take_no_time() -> None:
    with pytest.raises(DataError, match="no audio file"):
        read_audio(WAV[:12] + bytes(20_000_000), RATE)


def test_a_training_names_all_that_are_cut_off(tmp_path: Path) -> None:
    path = make_csv(tmp_path, [(0.5, "a"), (0.5, "b"), (0.5, "a"), (0.5, "b")])
    for name in ("train-1.wav", "train-2.wav"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:5000])
    alphabet, examples = Alphabet.of(["ab"]), read_csv(path)
    with pytest.raises(DataError, match="2 recordings cannot be read") as caught:
        encode_speech(examples, alphabet, Mfcc(), tmp_path / "cache")
    assert [(p.what, p.where) for p in caught.value.problems] == [
        ("the audio is cut off", str(tmp_path / f"train-{i}.wav")) for i in (1, 2)
    ]
    split = encode_speech(examples, alphabet, Mfcc(), tmp_path / "cache", unreadable="drop")
    assert (len(split), split.counts) == (2, {"unreadable": 2})


def test_pieces_of_files_are_looked_at_alone(tmp_path: Path) -> None:
    (tmp_path / "two.sdb").write_bytes(sdb_bytes([(WAV[:-100], "cut"), (WAV, "whole")]))
    cut, whole = read_sdb(tmp_path / "two.sdb")
    assert len(read_audio(whole.audio, RATE)) == len(SOUND)
    with pytest.raises(DataError, match="the audio is cut off"):
        read_audio(cut.audio, RATE)
    (tmp_path / "more").write_bytes(WAV[:-100] + np.ones(500, np.int16).tobytes())
    with pytest.raises(DataError, match="the audio is cut off"):
        read_audio(AudioSource(tmp_path / "more", 0, len(WAV) - 100), RATE)
