"""T5, mT5, umT5 and ByT5 as transformers saves them, converted by CTranslate2's converter and by us.

Where the converter is wrong with today's transformers (docs/decisions/0014) it is corrected here, in one place, and the
difference is tested by itself. ``WARMSTART_RECORD=1`` writes the digests for ``tests/export/test_export_t5.py``.
"""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from warmstart import api
from warmstart.errors import DialectError
from warmstart.export.quantize import QUANTIZATIONS
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.safetensors import write_safetensors

sys.path.insert(0, str(Path(__file__).parents[1]))
import t5_models

REQUIRES = ["transformers==5.23.0", "torch==2.13.0", "ctranslate2==4.8.5", "sentencepiece"]

SIZES = {
    "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4, "vocab_size": 56,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "decoder_start_token_id": 0,
}  # fmt: skip
RECORD = Path(__file__).parents[1] / "golden" / "ctranslate2-converters" / "t5.json"
GATED = {"feed_forward_proj": "gated-gelu"}
CASES: dict[str, dict[str, Any]] = {
    "t5": {"kind": "T5"},
    "t5-1.1": {"kind": "T5", **GATED, "untied": True},
    "t5-1.1-tied": {"kind": "T5", **GATED, "tie_word_embeddings": False},
    "t5-gated-silu": {"kind": "T5", "feed_forward_proj": "gated-silu"},
    "t5-gelu": {"kind": "T5", "feed_forward_proj": "gelu"},
    "mt5": {"kind": "MT5", **GATED, "untied": True},
    "mt5-tied": {"kind": "MT5", **GATED},
    "umt5": {"kind": "UMT5", **GATED},
    "umt5-untied": {"kind": "UMT5", **GATED, "untied": True, "says_tied": True},
    "umt5-untied-unscaled": {"kind": "UMT5", **GATED, "untied": True},
    "byt5": {"kind": "T5", **GATED, "untied": True, "bytes": True, "vocab_size": 384},
}


FIXED = {"relative_attention_max_distance": 128, "relative_attention_num_buckets": 32}  # in Google's code
REFUSED = {"t5-gelu": "activation", "umt5-untied": "scale_outputs"}  # not computed by Google's code


def tokenizer(sentinels: int = 10) -> Any:
    import transformers

    pieces = [f"{'▁' * (k % 2)}w{k}" for k in range(37)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -float(k)) for k, piece in enumerate(pieces))]
    vocab += [(f"<extra_id_{k}>", 0.0) for k in range(sentinels - 1, -1, -1)]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=sentinels)


def save(folder: Path, case: str, dtype: str = "float32", sizes: dict[str, Any] = SIZES) -> Path:
    """A random model of ``CASES[case]`` in ``folder``, as transformers saves it, or as the published ones lie there:
    with an output layer of its own."""
    import torch
    import transformers

    options = dict(CASES[case])
    kind, untied, says_tied = options.pop("kind"), options.pop("untied", False), options.pop("says_tied", False)
    of_bytes = options.pop("bytes", False)
    torch.manual_seed(7)
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **options})
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    (transformers.ByT5Tokenizer() if of_bytes else tokenizer()).save_pretrained(folder)
    if untied:
        with_output(folder, says_tied)
    return folder


def with_output(folder: Path, says_tied: bool) -> None:
    checkpoint = open_checkpoint(folder)
    arrays = {name: np.array(checkpoint.read(name)) for name in checkpoint.entries}
    shared = arrays["shared.weight"]
    output = np.random.default_rng(3).normal(scale=0.4, size=shared.shape).astype(shared.dtype)
    arrays["lm_head.weight"] = output
    entries = [type(next(iter(checkpoint.entries.values())))(n, a.shape, a.dtype.name) for n, a in arrays.items()]
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model.safetensors", entries, arrays.values(), {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("scale_decoder_outputs", None)
    config["tie_word_embeddings"] = says_tied
    config["transformers_version"] = "5.23.0" if says_tied else "4.51.0"
    (folder / "config.json").write_text(json.dumps(config))


def scales(folder: Path) -> bool:
    """Whether the model that lies in ``folder`` scales what enters its output layer."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "mt5":
        return False
    return bool(config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True)))


def theirs(folder: Path, output: Path, quantization: str, monkeypatch: pytest.MonkeyPatch | None) -> Path:
    from ctranslate2.converters import TransformersConverter
    from ctranslate2.converters import transformers as loaders
    from ctranslate2.specs.model_spec import OPTIONAL

    if monkeypatch is not None and not scales(folder):
        original = loaders.T5Loader.get_model_spec

        def corrected(self: Any, model: Any) -> Any:
            spec = original(self, model)
            spec.decoder.scale_outputs = OPTIONAL
            return spec

        monkeypatch.setattr(loaders.T5Loader, "get_model_spec", corrected)
    converter = TransformersConverter(str(folder))
    converter.convert(str(output), quantization=None if quantization == "none" else quantization)
    return output


def assert_same_files(ours: Path, expected: Path) -> None:
    for file in expected.iterdir():
        assert (ours / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("case", CASES)
def test_same_bytes(case, quantization, tmp_path, monkeypatch):
    folder = save(tmp_path / "model", case)
    theirs(folder, tmp_path / "theirs", quantization, monkeypatch)
    api.convert(folder, tmp_path / "ours", "ctranslate2", quantize=quantization)
    assert_same_files(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("kind", t5_models.KINDS)
def test_digests_are_of_the_reference(kind, tmp_path, monkeypatch):
    """What ``tests/export/test_export_t5.py`` compares with, without transformers, is what the reference writes."""
    folder = t5_models.write(tmp_path / "model", kind)
    recorded = {}
    for quantization in QUANTIZATIONS:
        with monkeypatch.context() as patch:
            output = theirs(folder, tmp_path / quantization, quantization, patch)
        recorded[quantization] = {f.name: sha256(f.read_bytes()).hexdigest() for f in sorted(output.iterdir())}
    if os.environ.get("WARMSTART_RECORD"):
        known = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps({**known, kind: recorded}, indent=1, sort_keys=True) + "\n")
    assert json.loads(RECORD.read_text())[kind] == recorded


def test_float16_stays_what_it_is(tmp_path):
    """transformers widens ``wo``, which is a float32 in their model.bin; nothing else differs, nor do the values."""
    folder = t5_models.write(tmp_path / "model", "t5-half", dtype="float16")
    there = open_checkpoint(theirs(folder, tmp_path / "theirs", "none", None))
    api.convert(folder, tmp_path / "ours", "ctranslate2")
    ours = open_checkpoint(tmp_path / "ours")
    assert set(there.entries) == set(ours.entries)
    widened = {name for name in there.entries if there.entries[name] != ours.entries[name]}
    assert widened == {name for name in there.entries if name.endswith("ffn/linear_1/weight")}
    assert all(np.array_equal(there.read(name), ours.read(name)) for name in there.entries)


def vocabulary(path: Path, rows: int) -> Path:
    """A plain vocabulary of ``rows`` tokens."""
    path.write_text("\n".join(["<pad>", "</s>", "<unk>", *(f"w{k}" for k in range(rows - 3))]) + "\n")
    return path


def fixture(name: str) -> Path:
    return Path(os.environ["WARMSTART_FIXTURES"]) / "fixtures" / "t5x" / name


def test_t5x_answers_through_transformers(tmp_path):
    """T5X's checkpoint as transformers computes it gives the logits that T5X gave (``tiny_oracle.npz``)."""
    import torch
    from transformers import T5ForConditionalGeneration

    oracle = np.load(fixture("tiny_oracle.npz"))
    tokens = vocabulary(tmp_path / "tokens.txt", 32128)
    api.convert(
        fixture("testdata/test_t5_tiny.checkpoint_0"), tmp_path / "model", "transformers", vocabularies=[str(tokens)]
    )
    model = T5ForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    enc, dec = torch.from_numpy(oracle["enc"]).long(), torch.from_numpy(oracle["dec"]).long()
    with torch.no_grad():
        logits = model(input_ids=enc, attention_mask=(enc > 0).long(), decoder_input_ids=dec).logits.numpy()
    real = oracle["tgt"] > 0
    assert real.sum() == 12
    assert np.abs(logits - oracle["logits"])[real].max() < 1e-5


@pytest.mark.parametrize("between", ["t5x", "mesh-tensorflow", "warmstart", "ctranslate2"])
@pytest.mark.parametrize("case", [c for c in CASES if c != "umt5-untied-unscaled"])
def test_models_return_to_transformers(case, between, tmp_path):
    """There and back, transformers loads the same tensors and computes the same logits."""
    import torch
    import transformers

    google = between in ("t5x", "mesh-tensorflow")
    folder = save(tmp_path / "model", case, sizes={**SIZES, **FIXED} if google else SIZES)
    if google and case in REFUSED:
        with pytest.raises(DialectError, match=REFUSED[case]):
            api.convert(folder, tmp_path / "there", between)
        return
    api.convert(folder, tmp_path / "there", between)
    api.convert(tmp_path / "there", tmp_path / "back", "transformers")
    kind = getattr(transformers, f"{CASES[case]['kind']}ForConditionalGeneration")
    before, after = (kind.from_pretrained(p).eval() for p in (folder, tmp_path / "back"))
    assert before.state_dict().keys() == after.state_dict().keys()
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]), name
    ids = torch.tensor([[5, 9, 17, 3, 1], [7, 8, 1, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long(), "decoder_input_ids": torch.tensor([[0, 4], [0, 6]])}
    with torch.no_grad():
        assert torch.equal(before(**inputs).logits, after(**inputs).logits)
    old, new = (transformers.AutoTokenizer.from_pretrained(p) for p in (folder, tmp_path / "back"))
    assert old.get_vocab() == new.get_vocab()
    assert old("w3w5 w7").input_ids == new("w3w5 w7").input_ids


@pytest.mark.parametrize("case", ["t5", "t5-1.1", "mt5", "umt5", "byt5"])
def test_the_engine_computes_what_transformers_does(case, tmp_path):
    """Log probabilities of a target agree; the reference's do not where its output is scaled and the model's is not."""
    import ctranslate2
    import torch
    import transformers

    folder = save(tmp_path / "model", case)
    api.convert(folder, tmp_path / "ours", "ctranslate2")
    theirs(folder, tmp_path / "theirs", "none", None)
    source, target = [5, 9, 17, 3, 1], [4, 11, 6, 8]
    kind = getattr(transformers, f"{CASES[case]['kind']}ForConditionalGeneration")
    model = kind.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[0, *target]])).logits[0]
    expected = torch.log_softmax(logits, -1)[range(5), [*target, 1]].numpy()
    tokens = json.loads((tmp_path / "ours" / "shared_vocabulary.json").read_text())

    def scores(path: Path) -> np.ndarray:
        translator = ctranslate2.Translator(str(path))
        (result,) = translator.score_batch([[tokens[k] for k in source]], [[tokens[k] for k in target]])
        return np.asarray(result.log_probs)

    assert np.abs(scores(tmp_path / "ours") - expected).max() < 1e-4
    assert (np.abs(scores(tmp_path / "theirs") - expected).max() < 1e-4) == scales(folder)
