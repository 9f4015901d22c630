"""TensorFlow Lite files in LiteRT: the module's outputs, TensorFlow's features, and what Coqui's client looks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speech_models import ALPHABET, CONFIG, write_audio, write_model
from warmstart import api
from warmstart.errors import BundleError, ConfigError, FormatError
from warmstart.export import tflite
from warmstart.inference.speech.acoustic import open_acoustic
from warmstart.inference.speech.transcriber import Transcriber
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.dialects.tflite import serialized
from warmstart.models.deepspeech.family import DeepSpeechFamily
from warmstart.models.deepspeech.mfcc import Mfcc
from warmstart.vocabularies.alphabet import Alphabet

interpreters = pytest.importorskip("ai_edge_litert.interpreter")
NORMED = CONFIG.model_copy(update={"layer_norm": True, "relu_clip": 0.5})


def convert(folder: Path, config: DeepSpeechConfig = CONFIG, alphabet: Alphabet = ALPHABET, **options: Any) -> Path:
    """A random model as a TensorFlow Lite file; ``folder/model`` is the module's."""
    write_model(folder / "model", config, alphabet)
    api.convert(folder / "model", folder / "out", "tflite", **options)
    return folder / "out" / "model.tflite"


def opened(path: Path) -> Any:
    interpreter = interpreters.Interpreter(str(path))
    interpreter.allocate_tensors()
    return interpreter


def outputs(interpreter: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    places = {tensor["name"]: tensor["index"] for tensor in interpreter.get_input_details()}
    zeros = {tensor["name"]: np.zeros(tensor["shape"], np.float32) for tensor in interpreter.get_input_details()}
    for name, value in (zeros | inputs).items():
        interpreter.set_tensor(places[name], value)
    interpreter.invoke()
    return {t["name"]: interpreter.get_tensor(t["index"]) for t in interpreter.get_output_details()}


@pytest.mark.parametrize("config", [CONFIG, NORMED], ids=["plain", "layer norm and a low clip"])
def test_probabilities_and_state_are_the_modules(tmp_path: Path, config: DeepSpeechConfig) -> None:
    path = convert(tmp_path, config)
    arrays = np.random.default_rng(0)
    windows, c, h = (arrays.standard_normal(s).astype(np.float32) for s in ((1, 16, 19, 26), (1, 24), (1, 24)))
    found = outputs(opened(path), {"input_node": windows, "previous_state_c": c, "previous_state_h": h})
    module = DeepSpeechFamily().build(config)
    weights = write_model(tmp_path / "again", config)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    with torch.inference_mode():
        state = torch.from_numpy(h), torch.from_numpy(c)
        logits, (h_after, c_after) = module.eval().step(torch.from_numpy(windows), state)
    np.testing.assert_allclose(found["logits"], logits[0].softmax(-1), atol=2e-6)
    np.testing.assert_allclose(found["new_state_h"], h_after, atol=2e-6)
    np.testing.assert_allclose(found["new_state_c"], c_after, atol=5e-6)


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_its_features_are_ours(tmp_path: Path, rate: int) -> None:
    config = CONFIG.model_copy(update={"sample_rate": rate})
    mfcc = Mfcc.of(config)
    samples = np.random.default_rng(1).uniform(-0.4, 0.4, mfcc.window).astype(np.float32)
    found = outputs(opened(convert(tmp_path, config)), {"input_samples": samples})
    np.testing.assert_allclose(found["mfccs"], mfcc(samples), atol=2e-5)


def test_coquis_client_finds_what_it_looks_for(tmp_path: Path) -> None:
    """Tensors by name, a node that makes each fact, the only tensor of unknown size last."""
    interpreter = opened(convert(tmp_path))
    inputs = {tensor["name"]: tensor["shape"].tolist() for tensor in interpreter.get_input_details()}
    state = {"previous_state_c": [1, 24], "previous_state_h": [1, 24]}
    assert inputs == {"input_node": [1, 16, 19, 26], "input_samples": [256]} | state
    made = [(op["outputs"], op["op_name"]) for op in interpreter._get_ops_details() if op["op_name"] != "DELEGATE"]
    facts = outputs(interpreter, {})
    assert {name: value.tolist() for name, value in facts.items() if name.startswith("metadata_")} == {
        "metadata_version": [6],
        "metadata_sample_rate": [8000],
        "metadata_feature_win_len": [32],
        "metadata_feature_win_step": [20],
        "metadata_beam_width": [500],
        "metadata_alphabet": [b"\x08\0" + b"".join(b"%c\0\x01\0%c" % pair for pair in enumerate(b" abcdefg"))],
    }
    places = {tensor["name"]: tensor["index"] for tensor in interpreter.get_output_details()}
    makers = {int(place): number for number, (outs, _) in enumerate(made) for place in outs}
    assert all(place in makers for place in places.values())
    assert makers[places["metadata_alphabet"]] == len(made) - 1
    assert {"AudioSpectrogram", "Mfcc"} <= {op for _, op in made}


@pytest.mark.parametrize(("given", "named"), [({"beam_size": 64}, 64), ({"beam_size": None}, 500)])
def test_it_names_the_beams_that_were_asked_for(tmp_path: Path, given: dict[str, int | None], named: int) -> None:
    facts = outputs(opened(convert(tmp_path, **given)), {})
    assert facts["metadata_beam_width"].tolist() == [named]


@pytest.mark.parametrize(("to", "beams"), [("onnx", 64), ("coqui", 64), ("tflite", 0), ("tflite", 2**31)])
def test_beams_that_no_file_can_name(tmp_path: Path, to: str, beams: int) -> None:
    write_model(tmp_path / "model", CONFIG, ALPHABET)
    with pytest.raises(ConfigError, match="TensorFlow Lite only"):
        api.convert(tmp_path / "model", tmp_path / "out", to, beam_size=beams)
    assert not (tmp_path / "out").exists()


def test_alphabets_of_bytes_and_of_other_letters() -> None:
    assert serialized(Alphabet("яb")) == b"\x02\0" + b"\0\0\x02\0\xd1\x8f" + b"\x01\0\x01\0b"
    raw = serialized(Alphabet.of_bytes())
    assert raw[:7] == b"\xff\0" + b"\0\0\x01\0\x01"
    assert (len(raw), raw[-1]) == (2 + 255 * 5, 255)


def test_files_and_streams_are_heard_alike(tmp_path: Path) -> None:
    out = convert(tmp_path).parent
    paths = [tmp_path / f"{k}.wav" for k in range(3)]
    samples = [write_audio(path, 0.7 + 0.4 * k, seed=k) for k, path in enumerate(paths)]
    ours, theirs = (api.transcribe(model, paths) for model in (tmp_path / "model", out))
    assert [row["text"] for row in ours] == [row["text"] for row in theirs]
    stream = Transcriber(open_acoustic(out)).stream()
    stream.feed(np.round(samples[2] * 32767).astype(np.float32) / 32767)
    assert stream.finish().text == ours[2]["text"]


def test_int8_is_small_and_near(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"n_hidden": 128})
    whole = convert(tmp_path / "float", config)
    rounded = convert(tmp_path / "int8", config, quantize="int8")
    assert rounded.stat().st_size < 0.35 * whole.stat().st_size
    windows = np.random.default_rng(0).standard_normal((1, 16, 19, 26)).astype(np.float32)
    expected, found = (outputs(opened(path), {"input_node": windows})["logits"] for path in (whole, rounded))
    assert 0 < np.abs(found - expected).max() < 0.2
    assert np.corrcoef(np.log(found).ravel(), np.log(expected).ravel())[0, 1] > 0.98


def test_arrays_begin_at_multiples_of_16_bytes(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    content = convert(tmp_path).read_bytes()
    model = schema.Model.GetRootAs(content)
    arrays = [model.Buffers(k).DataAsNumpy() for k in range(1, model.BuffersLength())]
    begin = np.frombuffer(content, np.uint8).ctypes.data
    assert len(arrays) > 20
    assert {(array.ctypes.data - begin) % 16 for array in arrays} == {0}


def test_what_is_too_large_or_damaged_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = convert(tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(BundleError, match=r"model\.tflite"):
        open_acoustic(path.parent)
    monkeypatch.setattr(tflite, "_LIMIT", 10_000)
    with pytest.raises(FormatError, match="too large"):
        api.convert(tmp_path / "model", tmp_path / "large", "tflite")
    assert not (tmp_path / "large").exists()
