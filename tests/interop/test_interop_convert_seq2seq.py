"""``ct2-transformers-converter`` and ``warmstart convert`` write the same bytes of encoder-decoder Transformers.

``WARMSTART_RECORD=1`` writes the digests that ``tests/export/test_export_transformers.py`` compares with.
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

import huggingface_models
from warmstart import api
from warmstart.export.quantize import QUANTIZATIONS
from warmstart.formats.detect import open_checkpoint

REQUIRES = ["ctranslate2==4.8.5", "transformers==5.23.0", "torch==2.13.0", "sentencepiece"]
RECORD = Path(__file__).resolve().parents[1] / "golden" / "ctranslate2-transformers" / "digests.json"
QUANTIZED = [None if q == "none" else q for q in QUANTIZATIONS]
TORCH_POSITIONS = ("m2m", "nllb")  # torch's float32 sine differs by processor, in the last bit
ENCODINGS = ("decoder/position_encodings/encodings", "encoder/position_encodings/encodings")


def files(folder: Path) -> dict[str, str]:
    names = [p.name for p in folder.iterdir() if p.name == "model.bin" or p.name.endswith(".json")]
    ours = ("conversion.json", "warmstart.json")
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in sorted(names) if name not in ours}


def assert_same(ours: Path, theirs: Path, kind: str) -> None:
    a, b = files(ours), files(theirs)
    if kind in TORCH_POSITIONS and a["model.bin"] != b["model.bin"]:
        one, two = open_checkpoint(ours / "model.bin"), open_checkpoint(theirs / "model.bin")
        assert list(one.entries) == list(two.entries)
        assert dict(one.ties) == dict(two.ties)
        for name, entry in one.entries.items():
            assert (entry.shape, entry.dtype) == (two.entries[name].shape, two.entries[name].dtype), name
            if name in ENCODINGS:
                np.testing.assert_allclose(one.read(name), two.read(name), rtol=0, atol=1e-4)
            else:
                assert one.read(name).tobytes() == two.read(name).tobytes(), name
        del a["model.bin"], b["model.bin"]
    assert a == b


@pytest.mark.parametrize("kind", huggingface_models.KINDS)
def test_every_quantization_is_theirs(kind: str, tmp_path: Path) -> None:
    source = huggingface_models.write(tmp_path / "source", kind)
    recorded = {}
    for quantization in QUANTIZED:
        theirs, ours = tmp_path / f"theirs-{quantization}", tmp_path / f"ours-{quantization}"
        TransformersConverter(str(source)).convert(str(theirs), quantization=quantization)
        api.convert(source, ours, "ctranslate2", quantize=quantization)
        assert_same(ours, theirs, kind)
        recorded[quantization or "none"] = files(theirs)
        if kind in TORCH_POSITIONS:
            recorded[quantization or "none"]["model.bin"] = files(ours)["model.bin"]  # theirs up to that bit, see above
    if os.environ.get("WARMSTART_RECORD"):
        record(kind, recorded)
    assert json.loads(RECORD.read_text())[kind] == recorded


def record(kind: str, found: dict[str, dict[str, str]]) -> None:
    RECORD.parent.mkdir(exist_ok=True)
    known = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    RECORD.write_text(json.dumps({**known, kind: found}, indent=1, sort_keys=True) + "\n")


@pytest.mark.parametrize("kind", huggingface_models.KINDS)
def test_the_library_loads_what_returns_and_answers_alike(kind: str, tmp_path: Path) -> None:
    source = huggingface_models.write(tmp_path / "source", kind)
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    api.convert(tmp_path / "ct2", tmp_path / "back", "transformers")
    ids = torch.arange(2, 12)[None]
    start = torch.tensor([[transformers.AutoConfig.from_pretrained(source).decoder_start_token_id or 2, 5, 6, 7]])
    logits = []
    for folder in (source, tmp_path / "back"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        with torch.no_grad():
            logits.append(model(input_ids=ids, decoder_input_ids=start).logits.float())
        assert tokenizer.get_vocab()
    assert torch.equal(*logits)


@pytest.mark.parametrize("kind", ["marian", "bart", "mbart50", "pegasus", "m2m", "nllb"])
def test_the_engine_scores_as_the_library_does(kind: str, tmp_path: Path) -> None:
    source = huggingface_models.write(tmp_path / "source", kind)
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    translator = ctranslate2.Translator(str(tmp_path / "ct2"))
    tokens = json.loads((tmp_path / "ct2" / "shared_vocabulary.json").read_text())
    config = transformers.AutoConfig.from_pretrained(source)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(source).eval()
    ids = [*list(range(6, 14)), config.eos_token_id]
    target = list(range(9, 15))
    with torch.no_grad():
        given = torch.tensor([[config.decoder_start_token_id, *target]])
        logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=given).logits[0]
    known = logits[:, : len(tokens)].log_softmax(-1)  # MarianMT's row for <pad> is no token of the engine
    expected = [float(known[i, t]) for i, t in enumerate([*target, config.eos_token_id])]
    scored = translator.score_batch([[tokens[i] for i in ids]], [[tokens[i] for i in target]])[0]
    assert scored.log_probs == pytest.approx(expected, abs=2e-5)
