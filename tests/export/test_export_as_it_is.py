"""Arrays under their own names in another format, whatever the family, and models that have none."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pretrained_models
from marian_models import OPTIONS, arrays, write
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.errors import ConfigError, DialectError, FormatError
from warmstart.formats.checkpoint import Entry, dtype_of
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.safetensors import write_safetensors


def same(a, b):
    left, right = open_checkpoint(a), open_checkpoint(b)
    assert set(left.entries) == set(right.entries)
    for name, entry in left.entries.items():
        assert (entry.shape, entry.dtype) == (right.entries[name].shape, right.entries[name].dtype), name
        assert left.read(name).tobytes() == right.read(name).tobytes(), name


@pytest.mark.parametrize("file", ["test_model2.pt", "test_model2-adam.pt"])
def test_a_recurrent_model_travels_and_returns(file, fixtures, tmp_path):
    """OpenNMT-py's own file of 2017, through every format and back: the same arrays, bit for bit."""
    source = fixtures / "fixtures/opennmt-py-2017-hbs-g2p" / file
    facts = api.convert(source, tmp_path / "st", "safetensors")
    assert facts["arrays"] == len(open_checkpoint(source).entries)
    api.convert(tmp_path / "st", tmp_path / "npz", "npz")
    api.convert(tmp_path / "npz", tmp_path / "pt", "torch")
    for name in ("st", "npz", "pt"):
        same(source, tmp_path / name)
        assert json.loads((tmp_path / name / "metadata.json").read_text())["opt"]["rnn_type"] == "LSTM"
    record = json.loads((tmp_path / "st/conversion.json").read_text())
    assert record["source"]["files"][0]["name"] == file
    behind = record["ledger"].get("optimizer_left_behind", {})
    assert len(behind) == (28 if "adam" in file else 0)  # m and v of 14 arrays


@pytest.mark.parametrize("to", ["ctranslate2", "transformers", "warmstart"])
def test_a_recurrent_model_has_no_family_and_it_says_why(to, fixtures, tmp_path):
    source = fixtures / "fixtures/opennmt-py-2017-hbs-g2p/test_model2.pt"
    with pytest.raises(DialectError, match="no family recognises") as caught:
        api.convert(source, tmp_path / "out", to)
    assert "encoder of type brnn and decoder of type rnn of LSTM cells" in str(caught.value.found)
    assert "CTranslate2 has no such models" in str(caught.value.found)
    assert "--to safetensors" in str(caught.value.todo)
    assert not (tmp_path / "out").exists()


def test_of_a_model_that_is_known_too(tmp_path):
    source = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    api.convert(source, tmp_path / "st", "safetensors")
    same(source, tmp_path / "st")
    quantized = tmp_path / "ct2"
    api.convert(source, quantized, "ctranslate2", quantize="int8")
    api.convert(quantized, tmp_path / "int8", "npz")
    same(quantized, tmp_path / "int8")  # integers and their scales, not what they stand for
    assert open_model(quantized).dialect == "ctranslate2"


def test_every_dtype_and_no_value_changes(tmp_path):
    kinds = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    made = {kind: np.arange(6).reshape(2, 3).astype(dtype_of(kind)) for kind in kinds}
    made["odd"] = np.array([np.nan, np.inf, -0.0, 1e-45], np.float32)
    made["scalar"] = np.array(3, np.int64)
    made["empty"] = np.zeros((0, 4), np.float32)
    entries = [Entry(name, array.shape, array.dtype.name) for name, array in made.items()]
    write_safetensors(tmp_path / "a.safetensors", entries, made.values(), {})
    api.convert(tmp_path / "a.safetensors", tmp_path / "pt", "torch")
    api.convert(tmp_path / "pt", tmp_path / "st", "safetensors")
    same(tmp_path / "a.safetensors", tmp_path / "pt")
    same(tmp_path / "a.safetensors", tmp_path / "st")
    with pytest.raises(FormatError, match="cannot hold 1 of"):
        api.convert(tmp_path / "a.safetensors", tmp_path / "npz", "npz")


def test_nothing_is_rounded_on_the_way(tmp_path):
    source = pretrained_models.write(tmp_path / "source", "bert")
    with pytest.raises(ConfigError, match="keeps every array as it is"):
        api.convert(source, tmp_path / "out", "safetensors", quantize="int8")
    with pytest.raises(ConfigError, match="whose answers could be compared"):
        api.convert(source, tmp_path / "out", "safetensors", verify=True)
    assert not (tmp_path / "out").exists()
    api.convert(source, tmp_path / "out", "safetensors")
    assert api.diff(source, tmp_path / "out", weights_only=True)["same"]
