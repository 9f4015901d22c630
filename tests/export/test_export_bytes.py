"""What CTranslate2's own converters write, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from marian_models import OPTIONS, PRE, arrays, write
from warmstart import api
from warmstart.errors import BundleError
from warmstart.export.quantize import QUANTIZATIONS
from warmstart.formats.detect import open_checkpoint
from warmstart.models.transformer.positions import sinusoids

FILES = {"model.bin", "config.json"}

MODELS = {
    "untied": {},
    "older output": {"untied": "W"},
    "tied": {"options": {"tied-embeddings": True}},
    "tied everywhere, before": {"options": {**PRE, "tied-embeddings-all": True, "dim-vocabs": [41, 41]}},
    "relu, aligned, without bias": {
        "options": {
            **PRE,
            "transformer-ffn-activation": "relu",
            "transformer-guided-alignment-layer": "2",
            "output-omit-bias": True,
        }
    },
    "gelu, norm of embeddings": {
        "options": {"transformer-ffn-activation": "gelu", "transformer-postprocess-emb": "nd"}
    },
    "other ffn": {"options": {"transformer-decoder-dim-ffn": 40}},
}


def model(folder: Path, case: str, **more: object) -> Path:
    options = {**OPTIONS, **MODELS[case].get("options", {})}
    contents = arrays(options, untied=MODELS[case].get("untied", "Wt"), **more)
    return write(folder, options, contents)


def theirs(folder: Path, output: Path, quantization: str | None, monkeypatch: pytest.MonkeyPatch | None) -> None:
    marian = pytest.importorskip("ctranslate2.converters.marian")
    if monkeypatch is not None:  # the one array that differs on purpose
        table = lambda dim, num_positions=2048: sinusoids(num_positions, dim)  # noqa: E731
        monkeypatch.setattr(marian, "_make_sinusoidal_position_encodings", table)
    vocabularies = sorted(map(str, folder.glob("vocab*.yml")))
    marian.MarianConverter(str(folder / "model.npz"), vocabularies).convert(str(output), quantization=quantization)


def assert_same_files(ours: Path, expected: Path) -> None:
    for file in expected.iterdir():
        content = file.read_bytes()
        if file.name == "config.json":
            values = {**json.loads(content), "layer_norm_epsilon": 1e-6}  # Marian's, docs/decisions/0014
            content = (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
        assert (ours / file.name).read_bytes() == content, file.name


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_marian_models(case, quantization, tmp_path, monkeypatch):
    folder = model(tmp_path / "marian", case)
    theirs(folder, tmp_path / "theirs", None if quantization == "none" else quantization, monkeypatch)
    api.convert(folder, tmp_path / "ours", "ctranslate2", quantize=quantization)
    assert_same_files(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("quantization", ["none", "int8", "float16"])
def test_half_precision_weights(quantization, tmp_path, monkeypatch):
    options = {**OPTIONS, "tied-embeddings": True}
    contents = {name: array.astype(np.float16) for name, array in arrays(options).items()}
    folder = write(tmp_path / "marian", options, contents)
    theirs(folder, tmp_path / "theirs", None if quantization == "none" else quantization, monkeypatch)
    api.convert(folder, tmp_path / "ours", "ctranslate2", quantize=quantization)
    assert_same_files(tmp_path / "ours", tmp_path / "theirs")


def test_equal_arrays_are_stored_once(tmp_path, monkeypatch):
    options = {**OPTIONS, "dim-vocabs": [41, 41]}
    contents = arrays(options)
    contents["encoder_Wemb"] = contents["decoder_Wemb"]
    contents["decoder_l2_self_Wo"] = contents["encoder_l1_self_Wo"]
    contents["decoder_l1_context_Wq"] = contents["encoder_l1_self_Wo"]
    for k in (1, 2, 3):
        contents[f"decoder_l{k}_self_bo"] = np.zeros_like(contents[f"decoder_l{k}_self_bo"])
    for letter in "qkv":
        contents[f"decoder_l3_self_W{letter}"] = contents[f"encoder_l2_self_W{letter}"]
    folder = write(tmp_path / "marian", options, contents)
    theirs(folder, tmp_path / "theirs", "int8", monkeypatch)
    api.convert(folder, tmp_path / "ours", "ctranslate2", quantize="int8")
    assert_same_files(tmp_path / "ours", tmp_path / "theirs")
    assert len(open_checkpoint(tmp_path / "ours").ties) == 7


def test_what_differs_from_their_converter(tmp_path):
    """Their table of positions is not Marian's (docs/decisions/0014)."""
    folder = model(tmp_path / "marian", "tied")
    theirs(folder, tmp_path / "theirs", None, None)
    api.convert(folder, tmp_path / "ours", "ctranslate2")
    ours, other = open_checkpoint(tmp_path / "ours"), open_checkpoint(tmp_path / "theirs")
    assert ours.entries == other.entries
    assert {n for n in ours.entries if ours.read(n).tobytes() != other.read(n).tobytes()} == {
        "decoder/position_encodings/encodings",
        "encoder/position_encodings/encodings",
    }


def test_learned_positions_leave_embeddings_unscaled(tmp_path, monkeypatch):
    folder = model(tmp_path / "marian", "tied", positions=9)
    theirs(folder, tmp_path / "theirs", None, monkeypatch)
    api.convert(folder, tmp_path / "ours", "ctranslate2")
    ours, other = open_checkpoint(tmp_path / "ours"), open_checkpoint(tmp_path / "theirs")
    assert ours.entries == other.entries
    different = {n for n in ours.entries if ours.read(n).tobytes() != other.read(n).tobytes()}
    assert different == {"decoder/scale_embeddings", "encoder/scale_embeddings"}


@pytest.mark.parametrize("to", ["ctranslate2", "warmstart"])
def test_the_manifest_s_files_are_those_that_lie_there(to, tmp_path):
    """A bundle's with their digests, an exported model's with their sizes (docs/decisions/0039)."""
    from warmstart.bundle.layout import verify

    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    api.convert(folder, tmp_path / "out", to)
    verify(tmp_path / "out")
    largest = max((tmp_path / "out").iterdir(), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[:-1] + b"?" if to == "warmstart" else content[:-1])
    with pytest.raises(BundleError):
        verify(tmp_path / "out")
