"""Speech models and their exports give the same log-probabilities; another model does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from speech_models import ALPHABET, CONFIG, write_model
from warmstart import api
from warmstart.errors import BundleError, ConfigError, DialectError, UnknownFormat, VerificationError, VocabularyError
from warmstart.inference.speech import verification
from warmstart.vocabularies.alphabet import Alphabet

pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")
ENGINES = {"onnx": "onnxruntime", "tflite": "litert", "warmstart": "warmstart"}


@pytest.mark.parametrize(
    ("to", "quantize"), [("onnx", None), ("onnx", "int8"), ("tflite", None), ("tflite", "int8"), ("warmstart", None)]
)
def test_an_export_is_compared_with_its_model(to: str, quantize: str | None, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    written = api.convert(tmp_path / "model", tmp_path / "out", to, quantize=quantize, verify=True)
    facts: Any = written["verification"]
    assert facts["same"]
    assert facts["engines"] == ["warmstart", ENGINES[to]]
    assert facts["quantizations"] == ["float32", quantize or "float32"]
    assert facts["b"] == str(tmp_path / "out")
    assert facts["largest"] < (1.0 if quantize else 1e-4)
    again = api.verify(tmp_path / "model", tmp_path / "out", seed=3)
    assert again["same"]
    # the means of thousands of values: the largest of two may be equal
    assert again["mean"] != facts["mean"] or again["mean"] == 0
    write_model(tmp_path / "other", seed=2)
    assert not api.verify(tmp_path / "other", tmp_path / "out")["same"]


@pytest.mark.parametrize("name", ["coqui-digits-en", "coqui-bytes-en"])
@pytest.mark.parametrize("to", ["onnx", "tflite"])
def test_a_trained_model_in_int8_is_the_same(fixtures: Path, to: str, name: str, tmp_path: Path) -> None:
    """What is rounded is measured on sound: random features took its activations where no recording does."""
    model = fixtures / "fixtures" / name
    api.convert(f"{model}@best", tmp_path / "out", to, quantize="int8")
    for seed in range(4):
        assert api.verify(f"{model}@best", tmp_path / "out", seed=seed)["same"]


def test_models_that_hear_other_features_are_not_compared(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_model(tmp_path / "slow", CONFIG.model_copy(update={"step_ms": 40}))
    with pytest.raises(DialectError, match="hear different features"):
        api.verify(tmp_path / "model", tmp_path / "slow")


def test_two_exports_and_their_files(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    for to in ("onnx", "tflite"):
        api.convert(tmp_path / "model", tmp_path / to, to)
    facts = api.verify(tmp_path / "onnx/model.onnx", tmp_path / "tflite/model.tflite", count=3)
    assert (facts["same"], facts["inputs"], facts["engines"]) == (True, 3, ["onnxruntime", "litert"])
    assert facts["largest"] > 0


def test_an_export_is_not_evaluated(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    api.convert(tmp_path / "model", tmp_path / "onnx", "onnx")
    (tmp_path / "a.csv").write_text("wav_filename,transcript\na.wav,a\n")
    with pytest.raises(ConfigError, match="an exported model is not evaluated"):
        api.evaluate(tmp_path / "onnx", tmp_path / "a.csv")


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_model(tmp_path / "letters", alphabet=Alphabet(" gfedcba"))
    api.convert(tmp_path / "model", tmp_path / "onnx", "onnx")
    with pytest.raises(VocabularyError, match="different text vocabularies"):
        api.verify(tmp_path / "letters", tmp_path / "onnx")
    (tmp_path / "lines").write_text("a\n")
    with pytest.raises(ConfigError, match="this model hears sound"):
        api.verify(tmp_path / "model", tmp_path / "onnx", inputs=tmp_path / "lines")
    (tmp_path / "onnx/config.json").unlink()
    with pytest.raises(BundleError, match=r"config\.json"):
        api.verify(tmp_path / "model", tmp_path / "onnx")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UnknownFormat, match="an empty directory"):
        api.verify(tmp_path / "model", tmp_path / "nothing")


def test_a_wrong_export_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "model")
    write_model(tmp_path / "other", CONFIG, ALPHABET, seed=2)
    api.convert(tmp_path / "other", tmp_path / "onnx", "onnx")
    other = verification.side_of(tmp_path / "onnx")
    right = verification.side_of
    monkeypatch.setattr(verification, "side_of", lambda x: other if isinstance(x, Path) else right(x))
    with pytest.raises(VerificationError, match=r"letters \(log-probabilities\)"):
        api.convert(tmp_path / "model", tmp_path / "out", "onnx", verify=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "onnx", "other"]
