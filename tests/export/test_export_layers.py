"""A specification filled by hand gives the bytes that a conversion gives, under the same checks."""

from __future__ import annotations

import numpy as np
import pytest

from marian_models import OPTIONS, arrays, write
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.converters import Layer, write_specification
from warmstart.errors import BundleError, ConfigError, DialectError, FormatError
from warmstart.formats.detect import open_checkpoint


@pytest.fixture
def filled(tmp_path):
    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    api.convert(folder, tmp_path / "ct2", "ctranslate2")
    checkpoint, model = open_checkpoint(tmp_path / "ct2"), open_model(folder)
    root = Layer.of({n: np.array(checkpoint.read(n)) for n, e in checkpoint.entries.items() if e.shape})
    family, config, _ = model.require()
    return root, {"family": family, "config": config, "vocabularies": model.vocabularies}


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_same_bytes(quantize, filled, tmp_path):
    root, known = filled
    api.convert(tmp_path / "marian", tmp_path / "expected", "ctranslate2", quantize=quantize)
    write_specification(root, tmp_path / "found", quantize=quantize, **known)
    for name in ("model.bin", "config.json"):
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_names_are_attributes(filled):
    root, _ = filled
    assert root.encoder.layer_0.ffn.linear_0.weight.ndim == 2
    assert root.encoder.layer[0] is root.encoder.layer_0
    assert root.encoder.layer[1].ffn.linear_0.weight is root.encoder.layer_1.ffn.linear_0.weight
    tree = Layer()
    tree.encoder.embeddings.weight = [[1.0]]
    tree.encoder.layer[1].ffn.bias = np.zeros(2)
    assert [n for n, _ in tree.arrays()] == ["encoder/embeddings/weight", "encoder/layer_1/ffn/bias"]
    assert "encoder/layer_1/ffn/bias: [2] float64" in repr(tree)
    with pytest.raises(ConfigError, match="has parts already"):
        tree.encoder.embeddings = np.zeros(1)
    with pytest.raises(ConfigError, match="no array of numbers"):
        tree.encoder.name = "text"
    with pytest.raises(ConfigError, match="only parts of a specification are numbered"):
        tree[0]


def test_what_numpy_cannot_read_is_named():
    torch = pytest.importorskip("torch")
    for tensor in (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, requires_grad=True)):
        with pytest.raises(ConfigError, match="no array of numbers"):
            Layer().weight = tensor


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda r: setattr(r.encoder, "layr_0", np.zeros(3, "f")), DialectError, "encoder/layr_0 would be left behind"),
        (lambda r: r.encoder.layer_0.ffn.linear_0._parts.pop("weight"), DialectError, "linear_0/weight is missing"),
        (
            lambda r: setattr(r.encoder.layer_0.ffn.linear_0, "bias", np.zeros(3, "f")),
            DialectError,
            "encoder/layer_0/ffn/linear_0/bias has another shape",
        ),
        (
            lambda r: setattr(r.encoder.position_encodings, "encodings", np.zeros((2048, 8), "f")),
            DialectError,
            "encoder/position_encodings/encodings",
        ),
        (lambda r: r.encoder.layer_0.ffn.linear_0.weight.__setitem__((0, 0), np.nan), FormatError, "not finite"),
        (
            lambda r: setattr(r.encoder.layer[0].ffn.linear_0, "bias", np.zeros(3, "f")),
            DialectError,
            "encoder/layer_0/ffn/linear_0/bias has another shape",
        ),
    ],
)
def test_the_same_checks(change, error, text, filled, tmp_path):
    root, known = filled
    change(root)
    with pytest.raises(error, match=text):
        write_specification(root, tmp_path / "found", quantize="int8", **known)
    assert not (tmp_path / "found").exists()


def test_a_vocabulary_must_fit(filled, tmp_path):
    root, known = filled
    config = known["config"].model_copy(update={"source_vocab_size": 3})
    with pytest.raises((BundleError, DialectError)):
        write_specification(root, tmp_path / "found", **{**known, "config": config})
