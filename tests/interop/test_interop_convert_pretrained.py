"""Encoder-only and speech models: byte by byte as ``ct2-transformers-converter`` writes them, and loaded by both.

Record the expected digests again with ``WARMSTART_RECORD=1`` after a new release of the peers.
"""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import torch
import transformers
from ctranslate2.converters import TransformersConverter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pretrained_models
from warmstart import api
from warmstart.export.quantize import QUANTIZATIONS

REQUIRES = ["ctranslate2==4.8.5", "transformers==5.23.0", "torch==2.13.0"]
RECORD = Path(__file__).resolve().parents[1] / "golden" / "ctranslate2-pretrained" / "digests.json"
NAMES = ("config.json", "model.bin", "vocabulary.json")
# The reference writes no languages where generation_config.json is missing: docs/decisions/0019.
DIFFERENT = {"whisper-plain": ("config.json",)}
CLASSES = {"bert": "AutoModel", "distilbert": "AutoModel", "whisper": "WhisperForConditionalGeneration",
           "wav2vec2": "Wav2Vec2ForCTC", "wav2vec2-bert": "Wav2Vec2BertForCTC"}  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained_models.small_engine(monkeypatch)
    torch.set_num_threads(1)  # the last bit of a normed weight depends on it


def digests(folder: Path, kind: str) -> dict[str, str]:
    names = [name for name in NAMES if name not in DIFFERENT.get(kind, ())]
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.mark.parametrize("kind", pretrained_models.KINDS)
def test_every_quantization_is_theirs(kind: str, tmp_path: Path) -> None:
    source = pretrained_models.write(tmp_path / "source", kind)
    recorded = {}
    for quantization in QUANTIZATIONS:
        theirs, ours = tmp_path / f"theirs-{quantization}", tmp_path / f"ours-{quantization}"
        asked = None if quantization == "none" else quantization
        TransformersConverter(str(source)).convert(str(theirs), quantization=asked)
        api.convert(source, ours, "ctranslate2", quantize=quantization)
        recorded[quantization] = digests(theirs, kind)
        assert recorded[quantization] == digests(ours, kind), quantization
    if os.environ.get("WARMSTART_RECORD"):
        known = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
        RECORD.write_text(json.dumps({**known, kind: recorded}, indent=1, sort_keys=True) + "\n")
    assert json.loads(RECORD.read_text())[kind] == recorded


def arguments(kind: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    if kind.startswith("whisper"):
        sound = torch.randn(1, pretrained_models.MEL, 2 * pretrained_models.FRAMES)
        return {"input_features": sound, "decoder_input_ids": torch.tensor([[9, 3, 4, 5]])}
    if kind.startswith("wav2vec2-bert"):
        return {"input_features": torch.randn(1, 20, pretrained_models.MEL)}
    if kind.startswith("wav2vec2"):
        return {"input_values": torch.randn(1, 4000)}
    return {"input_ids": torch.arange(5, 15)[None]}


def answer(folder: Path, kind: str) -> torch.Tensor:
    name = next((v for k, v in reversed(CLASSES.items()) if kind.startswith(k)), "AutoModel")
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(**arguments(kind))[0]


@pytest.mark.parametrize("kind", [k for k in pretrained_models.KINDS if k != "wav2vec2-hidden"])
def test_the_library_loads_what_returns_and_answers_alike(kind: str, tmp_path: Path) -> None:
    source = pretrained_models.write(tmp_path / "source", kind)
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    api.convert(tmp_path / "ct2", tmp_path / "back", "transformers")
    before, after = answer(source, kind), answer(tmp_path / "back", kind)
    if kind.startswith("wav2vec2") and "bert" not in kind:  # the normed weight comes back in other parts
        torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(before, after)


def as_numpy(view: ctranslate2.StorageView) -> np.ndarray:
    return np.array(view.to(ctranslate2.DataType.float32))


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "xlm-roberta", "camembert"])
def test_the_engine_gives_the_states_of_the_library(kind: str, tmp_path: Path) -> None:
    source = pretrained_models.write(tmp_path / "source", kind)
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    states = ctranslate2.Encoder(str(tmp_path / "ct2")).forward_batch([list(range(5, 15))]).last_hidden_state
    np.testing.assert_allclose(as_numpy(states), answer(source, kind).numpy(), atol=2e-5)


def test_the_engine_encodes_sound_as_the_library(tmp_path: Path) -> None:
    source = pretrained_models.write(tmp_path / "source", "whisper")
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    sound = arguments("whisper")["input_features"]
    model = transformers.WhisperForConditionalGeneration.from_pretrained(source).eval()
    with torch.no_grad():
        expected = model.model.encoder(sound)[0]
    engine = ctranslate2.models.Whisper(str(tmp_path / "ct2"))
    found = engine.encode(ctranslate2.StorageView.from_array(sound.numpy()))
    np.testing.assert_allclose(as_numpy(found), expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("kind", ["wav2vec2"])
def test_the_engine_gives_the_outputs_of_the_library(kind: str, tmp_path: Path) -> None:
    source = pretrained_models.write(tmp_path / "source", kind)
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    sound = arguments(kind)["input_values"].numpy()[:, None]
    found = ctranslate2.models.Wav2Vec2(str(tmp_path / "ct2")).encode(ctranslate2.StorageView.from_array(sound))
    np.testing.assert_allclose(as_numpy(found), answer(source, kind).numpy(), atol=2e-4)
