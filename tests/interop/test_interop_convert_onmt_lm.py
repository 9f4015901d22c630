"""CTranslate2's converters of EOLE and OpenNMT-py and ``warmstart convert`` write the same bytes of language models.

``WARMSTART_RECORD=1`` writes the digests that ``tests/export/test_export_onmt_lm.py`` compares with. EOLE itself is
not installed: the converter's builder of specifications is given the arrays of the directory.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from ctranslate2.converters import OpenNMTPyConverter
from ctranslate2.specs import attention_spec, transformer_spec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import eole_stub
import onmt_lm_models as models
from warmstart import api
from warmstart.export.quantize import QUANTIZATIONS

REQUIRES = ["ctranslate2==4.8.5", "transformers==5.23.0", "torch==2.13.0"]
RECORD = Path(__file__).resolve().parents[1] / "golden" / "ctranslate2-converters" / "onmt-lm.json"
FILES = ("config.json", "model.bin", "vocabulary.json")


def digests(folder: Path) -> dict[str, str]:
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def compare_all(source: Path, convert: Callable[..., object], framework: str, kind: str) -> None:
    """Every quantization: ``convert(output, quantization)`` is theirs."""
    recorded = {}
    for quantization in QUANTIZATIONS:
        theirs, ours = (source.parent / f"{who}-{quantization}" for who in ("theirs", "ours"))
        convert(str(theirs), quantization=None if quantization == "none" else quantization)
        api.convert(source, ours, "ctranslate2", quantize=quantization)
        recorded[quantization] = digests(ours)
        assert recorded[quantization] == digests(theirs), quantization
    known = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    if os.environ.get("WARMSTART_RECORD"):
        known = {**known, framework: {**known.get(framework, {}), kind: recorded}}
        RECORD.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    assert known[framework][kind] == recorded


def tell(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Their converters leave out base and width of rotary positions and the width of heads; the specification takes
    them."""
    if kind not in {**models.ROTATED, **models.WIDE, **models.SCALED}:
        return
    original = transformer_spec.TransformerDecoderModelSpec.from_config.__func__
    said, more = models.ALL[kind], dict[str, float]()
    if said.positions == "rotary":
        more = {"rotary_base": said.theta, "rotary_dim": said.rotary_dim}
    if kind in models.WIDE:
        more["head_dim"] = said.head_dim
    if kind in models.SCALED:
        more |= {"rotary_scaling_type": attention_spec.RotaryScalingType.Linear, "rotary_scaling_factor": models.FACTOR}
    told = classmethod(lambda cls, *args, **options: original(cls, *args, **{**options, **more}))
    monkeypatch.setattr(transformer_spec.TransformerDecoderModelSpec, "from_config", told)


@pytest.mark.parametrize("kind", {**models.KINDS, **models.OLD, **models.ROTATED})
def test_opennmt_py(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = models.write_onmt(tmp_path / "model.pt", kind)
    tell(monkeypatch, kind)
    theirs = OpenNMTPyConverter(str(source), unsafe_deserialization=True)
    compare_all(source, theirs.convert, "opennmt-py", kind)


@pytest.mark.parametrize("kind", {**models.KINDS, **models.ROTATED, **models.WIDE, **models.SCALED})
def test_eole(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = models.write_eole(tmp_path / "source", kind)
    tell(monkeypatch, kind)
    eole_ct2 = eole_stub.eole_ct2(monkeypatch)
    model = models.eole_model(kind)
    positions = {"Relative": 1, "Rotary": 2, "Alibi": 3}.get(model["embeddings"]["position_encoding_type"])
    rope = model.get("rope_config", {})
    config = SimpleNamespace(
        embeddings=SimpleNamespace(position_encoding_type=positions), rope_config=SimpleNamespace(**rope),
        mlp_activation_fn=model["mlp_activation_fn"], sliding_window=model["sliding_window"],
        layer_norm=model["layer_norm"],
        decoder=SimpleNamespace(**model["decoder"], heads=model["heads"], heads_kv=model["heads_kv"]),
    )  # fmt: skip

    class Filled(eole_ct2.EoleConverter):
        def _load(self):
            variables = {name: torch.from_numpy(array) for name, array in models.eole_arrays(kind).items()}
            spec = eole_ct2._get_model_spec_lm(config, variables, [models.TOKENS], [models.TOKENS], 1)
            spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<s>", "</s>", "<unk>"
            spec.config.layer_norm_epsilon = models.EPSILON
            return spec

    compare_all(source, Filled("").convert, "eole", kind)


@pytest.mark.parametrize("kind", ["halves", "base", "wide", "scaled as Llama 3"])
def test_transformers_computes_what_came_from_eole(kind: str, tmp_path: Path) -> None:
    api.convert(models.write_eole(tmp_path / "source", kind, sliding_window=0), tmp_path / "out", "transformers")
    rows = [2, 5, 9, 4, 11]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        found = model(input_ids=torch.tensor([rows])).logits[0].log_softmax(-1)
    torch.testing.assert_close(
        found.double(), torch.from_numpy(models.log_probabilities(kind, rows)), atol=1e-5, rtol=0
    )
