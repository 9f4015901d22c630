"""ONNX files against onnxruntime: the same outputs as the module, at once and in pieces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from warmstart import api
from warmstart.bundle.layout import write_bundle
from warmstart.errors import ConfigError, MissingExtra
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.family import DeepSpeechFamily
from warmstart.vocabularies.alphabet import Alphabet

ort = pytest.importorskip("onnxruntime")
ALPHABET = Alphabet("abcdefg '")


def bundle_of(path: Path, config: DeepSpeechConfig, alphabet: Alphabet = ALPHABET) -> dict[str, np.ndarray]:
    """A bundle with random weights; its arrays."""
    family, rng = DeepSpeechFamily(), np.random.default_rng(3)
    arrays = {
        p.name: (rng.standard_normal(p.shape) / np.sqrt(p.shape[-1])).astype(np.float32)
        for p in family.parameters(config)
    }
    write_bundle(path, family, config, arrays.values(), {"text": alphabet}, {})
    return arrays


def module_of(config: DeepSpeechConfig, arrays: dict[str, np.ndarray]) -> torch.nn.Module:
    module = DeepSpeechFamily().build(config)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return module.eval()


def run(path: Path, features: np.ndarray, state: list[np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"features": features, "h": state[0], "c": state[1]})


@pytest.mark.parametrize("layer_norm", [False, True])
def test_log_probabilities_are_the_modules(tmp_path: Path, layer_norm: bool) -> None:
    config = DeepSpeechConfig(vocab_size=10, n_hidden=12, layer_norm=layer_norm, relu_clip=0.5)
    module = module_of(config, bundle_of(tmp_path / "bundle", config))
    api.convert(tmp_path / "bundle", tmp_path / "out", "onnx")
    features = np.random.default_rng(0).standard_normal((2, 31, 26)).astype(np.float32)
    zeros = [np.zeros((1, 2, 12), np.float32)] * 2
    found, h, c = run(tmp_path / "out" / "model.onnx", np.pad(features, ((0, 0), (9, 9), (0, 0))), zeros)
    with torch.no_grad():
        expected = module(torch.from_numpy(features), torch.tensor([31, 31])).log_softmax(-1)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)
    assert h.shape == c.shape == (1, 2, 12)


def test_pieces_are_the_whole(tmp_path: Path) -> None:
    config = DeepSpeechConfig(vocab_size=10, n_hidden=12)
    bundle_of(tmp_path / "bundle", config)
    api.convert(tmp_path / "bundle", tmp_path / "out", "onnx")
    path = tmp_path / "out" / "model.onnx"
    padded = np.random.default_rng(1).standard_normal((1, 40 + 18, 26)).astype(np.float32)
    state = [np.zeros((1, 1, 12), np.float32)] * 2
    whole = run(path, padded, state)[0]
    pieces = []
    for start in range(0, 40, 16):
        piece, *state = run(path, padded[:, start : start + 16 + 18], state)
        pieces.append(piece)
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, atol=1e-6)


def test_int8_is_a_quarter_and_near(tmp_path: Path) -> None:
    config = DeepSpeechConfig(vocab_size=10, n_hidden=128)
    module = module_of(config, bundle_of(tmp_path / "bundle", config))
    api.convert(tmp_path / "bundle", tmp_path / "float", "onnx")
    api.convert(tmp_path / "bundle", tmp_path / "int8", "onnx", quantize="int8")
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("float", "int8")]
    assert sizes[1] < 0.5 * sizes[0]  # layer 1 stays as it is
    features = np.random.default_rng(0).standard_normal((1, 20, 26)).astype(np.float32)
    zeros = [np.zeros((1, 1, 128), np.float32)] * 2
    found = run(tmp_path / "int8" / "model.onnx", np.pad(features, ((0, 0), (9, 9), (0, 0))), zeros)[0]
    with torch.no_grad():
        expected = module(torch.from_numpy(features), torch.tensor([20])).log_softmax(-1).numpy()
    assert 0 < np.abs(found - expected).max() < 0.1


def test_what_a_program_needs_is_beside_it(tmp_path: Path) -> None:
    config = DeepSpeechConfig(vocab_size=256, n_hidden=4, sample_rate=8000)
    bundle_of(tmp_path / "bundle", config, Alphabet.of_bytes())
    api.convert(tmp_path / "bundle", tmp_path / "out", "onnx")
    said = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert said["alphabet"] == {"utf8": True}
    assert (said["sample_rate"], said["n_context"]) == (8000, 9)


def test_quantizations_of_other_layouts_are_refused(tmp_path: Path) -> None:
    config = DeepSpeechConfig(vocab_size=10, n_hidden=4)
    bundle_of(tmp_path / "bundle", config)
    with pytest.raises(ConfigError, match=r"int16 does not go with --to onnx\s+to do: leave it out, or use int8"):
        api.convert(tmp_path / "bundle", tmp_path / "out", "onnx", quantize="int16")
    assert not (tmp_path / "out").exists()


def test_without_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DeepSpeechConfig(vocab_size=10, n_hidden=4)
    bundle_of(tmp_path / "bundle", config)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingExtra, match=r"warmstart\[onnx\]"):
        api.convert(tmp_path / "bundle", tmp_path / "out", "onnx")
