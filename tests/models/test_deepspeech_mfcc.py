"""Features against TensorFlow's own."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from warmstart.errors import ConfigError
from warmstart.models.deepspeech.mfcc import BLOCK, Mfcc
from warmstart.models.deepspeech.mfcc_torch import MfccBatch


def samples_of(path: Path) -> NDArray[np.float32]:
    """The samples as Coqui's training reads them: int16 / 32767."""
    with wave.open(str(path)) as file:
        return (np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767).astype(np.float32)


def noise(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n).astype(np.float32)


@pytest.mark.parametrize("model", ["coqui-digits-en", "coqui-bytes-en"])
def test_numpy_and_torch_are_tensorflows(fixtures: Path, model: str) -> None:
    expected = np.load(fixtures / "fixtures" / model / "expected" / "mfcc.npz")
    mfcc = Mfcc(8000)
    clips = {name: samples_of(fixtures / "data/fsdd/recordings" / f"{name}.wav") for name in expected.files}
    lengths = torch.tensor([len(clip) for clip in clips.values()])
    padded = torch.zeros(len(clips), int(lengths.max()))
    for row, clip in zip(padded, clips.values(), strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    batch, frames = MfccBatch(mfcc)(padded, lengths)
    for b, (name, clip) in enumerate(clips.items()):
        features = mfcc(clip)
        assert features.shape == expected[name].shape
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, expected[name], rtol=0, atol=1e-5)
        np.testing.assert_allclose(batch[b, : frames[b]], expected[name], rtol=0, atol=1e-5)
        assert not batch[b, frames[b] :].any()


def test_golden_of_every_rate() -> None:
    golden = np.load(Path(__file__).parents[1] / "golden/tensorflow-mfcc.npz")
    assert sorted(golden.files) == ["16000", "48000", "8000"]
    for rate in (8000, 16000, 48000):
        features = Mfcc(rate)(noise(rate // 5, rate))
        np.testing.assert_allclose(features, golden[str(rate)], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("n", "frames"), [(0, 0), (1, 0), (511, 0), (512, 1), (831, 1), (832, 2), (46797, 145)])
def test_frames(n: int, frames: int) -> None:
    assert Mfcc().frames(n) == frames
    assert Mfcc()(noise(n)).shape == (frames, 26)
    assert MfccBatch(Mfcc())(torch.from_numpy(noise(n))[None], torch.tensor([n]))[0].shape == (1, frames, 26)


def test_digital_silence_is_the_floor() -> None:
    features = Mfcc(8000)(np.zeros(256, np.float32))
    assert features[0, 0] == pytest.approx(40 * np.log(1e-12) * np.sqrt(2 / 40), abs=1e-4)
    assert np.abs(features[0, 1:]).max() < 1e-10


def test_torch_equals_numpy_on_long_audio() -> None:
    clip = noise(16000 * 8)
    batch, _ = MfccBatch(Mfcc())(torch.from_numpy(clip)[None], torch.tensor([len(clip)]))
    np.testing.assert_allclose(batch[0], Mfcc()(clip), rtol=0, atol=1e-5)
    assert not MfccBatch(Mfcc()).state_dict()


@pytest.mark.parametrize("block", [1, 100, 320, 511, 512, 513, 10_000])
def test_a_stream_is_the_whole(block: int) -> None:
    clip = noise(320 * 20 + 37)
    pieces = list(Mfcc().stream(clip[at : at + block] for at in range(0, len(clip), block)))
    np.testing.assert_allclose(np.concatenate(pieces), Mfcc()(clip), rtol=0, atol=1e-6)


@pytest.mark.parametrize("block", [1, 100, 300, 513, 2000])
def test_a_stream_is_the_whole_where_windows_have_gaps_between_them(block: int) -> None:
    mfcc, clip = Mfcc(8000, win_ms=16, step_ms=40), noise(4321)
    pieces = list(mfcc.stream(clip[at : at + block] for at in range(0, len(clip), block)))
    np.testing.assert_array_equal(np.concatenate(pieces), mfcc.coefficients(mfcc.spectrogram(clip)))


def test_blocks_leave_no_seam() -> None:
    mfcc, clip = Mfcc(8000), noise(160 * (2 * BLOCK + 3) + 256)
    start = BLOCK - 2
    np.testing.assert_allclose(mfcc(clip)[start : start + 5], mfcc(clip[start * 160 :])[:5], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(mfcc.coefficients(mfcc.spectrogram(clip)), mfcc(clip))


@pytest.mark.parametrize("options", [{"sample_rate": 22050}, {"win_ms": 0}, {"n_input": 41}, {"sample_rate": 44100}])
def test_impossible_settings(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Mfcc(**options)
