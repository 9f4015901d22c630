"""Audio of any kind, good and bad."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from speech_files import RATE, tone, wav_bytes

from warmstart.data.speech.audio import audio_blocks, read_audio
from warmstart.data.speech.example import AudioSource
from warmstart.errors import DataError
from warmstart.models.deepspeech.mfcc import Mfcc


def test_sixteen_bits_are_divided_by_32767(tmp_path: Path) -> None:
    values = np.array([0, 1, -1, 32767, -32768, 1234], "<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(values.tobytes())
    samples = read_audio(tmp_path / "a.wav", RATE)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, (values / 32767).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "subtype", "loss"),
    [
        *(("WAV", "PCM_16", 1e-4), ("WAV", "PCM_24", 1e-4), ("WAV", "FLOAT", 1e-7), ("WAV", "DOUBLE", 1e-7)),
        *(("WAV", "PCM_U8", 0.01), ("WAV", "ULAW", 0.02), ("WAVEX", "PCM_16", 1e-4), ("RF64", "PCM_16", 1e-4)),
        *(("FLAC", "PCM_16", 1e-4), ("FLAC", "PCM_24", 1e-4), ("OGG", "VORBIS", 0.05), ("OGG", "OPUS", 0.1)),
        ("MP3", "MPEG_LAYER_III", 0.1),
    ],
)
def test_every_format_is_the_same_sound(tmp_path: Path, name: str, subtype: str, loss: float) -> None:
    sound = tone(0.5)
    data = wav_bytes(sound, format=name, subtype=subtype)
    (tmp_path / "sound").write_bytes(data)
    (tmp_path / "more").write_bytes(b"before" + data + b"after")
    piece = AudioSource(tmp_path / "more", 6, len(data))
    for source in (data, tmp_path / "sound", AudioSource(tmp_path / "sound"), piece):
        samples = read_audio(source, RATE)
        assert len(samples) == len(sound)
        assert np.abs(samples - sound).max() < loss


def test_channels_are_averaged_and_rates_changed() -> None:
    left, right = tone(1.0, 440, 44100), tone(1.0, 880, 44100, seed=1)
    samples = read_audio(wav_bytes(np.stack([left, right], 1), 44100), RATE)
    expected = (tone(1.0, 440) + tone(1.0, 880, seed=1)) / 2
    assert len(samples) == RATE
    spectrum, wanted = (np.abs(np.fft.rfft(x * np.hanning(RATE))) for x in (samples, expected))
    for hertz in (440, 880):
        assert spectrum[hertz] == pytest.approx(wanted[hertz], rel=0.02)
    with pytest.raises(DataError, match="another sample rate"):
        read_audio(wav_bytes(left, 44100), RATE, resample=False)


@pytest.mark.parametrize(
    ("rate", "n", "expected"), [(8000, 1, 2), (44100, 100_000, 36281), (48000, 7, 2), (16000, 1, 1)]
)
def test_lengths_are_rounded(rate: int, n: int, expected: int) -> None:
    assert len(read_audio(wav_bytes(tone(1.0, rate=rate * 3)[:n], rate), RATE)) == expected


def test_nothing_and_one_sample() -> None:
    assert read_audio(wav_bytes(np.empty(0, np.float32)), RATE).shape == (0,)
    assert read_audio(wav_bytes(np.empty(0, np.float32), 44100), RATE).shape == (0,)
    assert read_audio(wav_bytes(np.ones(1, np.float32)), RATE).tolist() == [1.0]


@pytest.mark.parametrize("start", [0.0, 0.25, 0.99])
def test_from_the_middle(start: float) -> None:
    data = wav_bytes(tone(2.0))
    part = np.concatenate(list(audio_blocks(data, RATE, start=start)))
    np.testing.assert_array_equal(part, read_audio(data, RATE)[int(start * 2 * RATE) :])


def broken(data: bytes, at: int, patch: bytes) -> bytes:
    return data[:at] + patch + data[at + len(patch) :]


FLAC = wav_bytes(tone(3.0), format="FLAC")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no audio file"),
        (b"nothing of the kind" * 20, "no audio file"),
        (b"RIFF", "no audio file"),
        (wav_bytes(tone(0.1))[:30], "no audio file"),
        (FLAC[: len(FLAC) // 2], "damaged"),
        (broken(FLAC, len(FLAC) // 2, bytes(2000)), "damaged"),
        (broken(wav_bytes(tone(0.1)), 24, struct.pack("<I", 7)), "impossible sample rate"),
        (broken(wav_bytes(tone(0.1)), 24, struct.pack("<I", 2**31 - 1)), "sample rate|no audio file"),
        (wav_bytes(np.array([0, np.nan, np.inf], np.float32), subtype="FLOAT"), "not finite"),
        (wav_bytes(tone(1.0), format="OGG", subtype="VORBIS")[:3000], "cut off"),
    ],
    ids=["empty", "text", "riff", "header", "flac", "zeros", "rate 7", "rate", "nan", "ogg"],  # files hold the time
)
def test_bad_audio_is_one_error_that_names_it(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "bad.flac").write_bytes(data)
    for source in (tmp_path / "bad.flac", AudioSource(tmp_path / "bad.flac"), data):
        with pytest.raises(DataError, match=message) as caught:
            read_audio(source, RATE)
        assert caught.value.where == ("audio in memory" if isinstance(source, bytes) else str(tmp_path / "bad.flac"))


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    path.write_bytes(wav_bytes(tone(0.1)))
    assert len(read_audio(path, RATE)) == round(0.1 * RATE)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_pipes(tmp_path: Path, kind: str) -> None:
    data = wav_bytes(tone(0.1), format=kind, subtype="VORBIS" if kind == "OGG" else "PCM_16")
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as threads:
        writing = threads.submit((tmp_path / "pipe").write_bytes, data)
        samples = read_audio(tmp_path / "pipe", RATE)
        writing.result()
    np.testing.assert_array_equal(samples, read_audio(data, RATE))


def test_missing_files_and_directories(tmp_path: Path) -> None:
    for path in (tmp_path / "none.wav", tmp_path, tmp_path / "a.wav" / "b"):
        with pytest.raises(DataError) as caught:
            read_audio(path, RATE)
        assert caught.value.where == str(path)
        assert (caught.value.found == "a directory, not a file") is (path == tmp_path)
    (tmp_path / "short").write_bytes(b"1234")
    with pytest.raises(DataError, match="cut off"):
        read_audio(AudioSource(tmp_path / "short", 2, 100), RATE)


def test_any_damage_is_an_error_or_sound() -> None:
    random = np.random.default_rng(0)
    good = [
        wav_bytes(tone(0.2), format=f, subtype=s) for f, s in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"))
    ]
    outcomes = {"sound": 0, "error": 0}
    for k in range(300):
        data = bytearray(good[k % 3])
        for _ in range(4):
            data[int(random.integers(len(data) if k % 2 else 60))] = int(random.integers(256))
        try:
            samples = read_audio(bytes(data[: int(random.integers(len(data)))] if k % 5 == 0 else data), RATE)
        except DataError:
            outcomes["error"] += 1
        else:
            outcomes["sound"] += 1
            assert np.isfinite(samples).all()
    assert min(outcomes.values()) > 20


def test_an_hour_needs_the_memory_of_a_block(tmp_path: Path) -> None:
    path = tmp_path / "hour.wav"
    minute = (tone(60.0) * 32767).astype("<i2")
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for _ in range(60):
            file.write(minute)
    mfcc = Mfcc()
    tracemalloc.start()
    frames = sum(len(piece) for piece in mfcc.stream(audio_blocks(path, RATE)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames == mfcc.frames(3600 * RATE)
    assert peak < 20e6  # an hour of samples is 230 MB, its spectrogram 185


def test_without_the_libraries() -> None:
    code = """
        import sys
        sys.modules["soundfile"] = None
        from warmstart.data.speech.audio import read_audio
        from warmstart.errors import MissingExtra
        try:
            read_audio(b"", 16000)
        except MissingExtra as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert "soundfile is not installed" in done.stdout
    assert "warmstart[speech]" in done.stdout


@pytest.mark.parametrize(
    ("data", "found", "todo"),
    [
        (b"", "an empty file", "again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a git-lfs pointer", "git lfs pull"),
        (b"<!DOCTYPE html><title>Not found</title>", "a web page", "download"),
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "MPEG-4", "ffmpeg"),
        (b"\x1aE\xdf\xa3\x01\0\0\0", "Matroska or WebM", "ffmpeg"),
        (b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n", "shorten", "sph2pipe"),
        (b"hello" * 100, "Format not recognised", "ffmpeg"),
    ],
)
def test_what_is_not_read_is_named_with_what_to_do(tmp_path: Path, data: bytes, found: str, todo: str) -> None:
    (tmp_path / "a.wav").write_bytes(data)
    for source in (tmp_path / "a.wav", data):
        with pytest.raises(DataError, match="no audio file") as caught:
            read_audio(source, RATE)
        assert found in str(caught.value.found)
        assert todo in str(caught.value.todo)


def test_floating_point_samples_may_be_loud_but_not_integers() -> None:
    loud = tone(0.1) * 10
    assert np.abs(read_audio(wav_bytes(loud, subtype="FLOAT"), RATE)).max() > 2
    with pytest.raises(DataError, match="out of range") as caught:
        read_audio(wav_bytes(loud * 3276, subtype="FLOAT"), RATE)
    assert caught.value.expected == "about -1 to 1"
