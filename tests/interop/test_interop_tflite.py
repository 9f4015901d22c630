"""TensorFlow Lite: what litert-torch makes of our module, run by LiteRT's interpreter, hears what the module does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speech_models import write_audio, write_model
from warmstart import api
from warmstart.inference.speech.acoustic import open_acoustic
from warmstart.inference.speech.transcriber import Transcriber

REQUIRES = ["torch==2.13.0", "litert-torch==0.10.0", "soundfile", "soxr"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tflite")
    write_model(folder / "model")
    api.convert(folder / "model", folder / "float", "tflite")
    api.convert(folder / "model", folder / "int8", "tflite", quantize="int8")
    return folder


def test_log_probabilities_are_the_modules(exported: Path) -> None:
    ours, theirs = (Transcriber(open_acoustic(exported / name)) for name in ("model", "float"))
    features = np.random.default_rng(0).standard_normal((50, 26)).astype(np.float32)
    expected = np.concatenate([rows[0] for _, rows in ours.pieces([features])])
    found = np.concatenate([rows[0] for _, rows in theirs.pieces([features])])[:50]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_files_and_streams_are_heard_alike(exported: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.wav" for k in range(3)]
    samples = [write_audio(path, 0.7 + 0.4 * k, seed=k) for k, path in enumerate(paths)]
    ours, theirs = (api.transcribe(exported / name, paths) for name in ("model", "float"))
    assert [row["text"] for row in ours] == [row["text"] for row in theirs]
    stream = Transcriber(open_acoustic(exported / "float")).stream()
    stream.feed(np.round(samples[2] * 32767).astype(np.float32) / 32767)
    assert stream.finish().text == ours[2]["text"]


def test_int8_is_small_and_near(exported: Path) -> None:
    sizes = {name: (exported / name / "model.tflite").stat().st_size for name in ("float", "int8")}
    assert sizes["int8"] < 0.6 * sizes["float"]
    features = np.random.default_rng(0).standard_normal((16, 26)).astype(np.float32)
    ours, theirs = (Transcriber(open_acoustic(exported / name)) for name in ("model", "int8"))
    expected, found = (next(iter(t.pieces([features])))[1][0] for t in (ours, theirs))
    assert np.abs(found - expected).max() > 0
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
