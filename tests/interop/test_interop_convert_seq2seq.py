"""CTranslate2's converters and ``warmstart convert`` write the same bytes of encoder-decoder Transformers.

``WARMSTART_RECORD=1`` writes the digests that ``tests/export/test_export_{transformers,opennmt_py,fairseq}.py`` compare
with. fairseq itself is not installed: its converter walks over modules that ``fairseq_stub.py`` makes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import ctranslate2
import numpy as np
import pytest
import torch
import transformers
from ctranslate2.converters import FairseqConverter, OpenNMTPyConverter, TransformersConverter
from ctranslate2.specs import transformer_spec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import eole_stub
import fairseq_stub
import huggingface_models
import torch_models
from warmstart import api
from warmstart.export.quantize import QUANTIZATIONS
from warmstart.formats.detect import open_checkpoint

REQUIRES = ["ctranslate2==4.8.5", "transformers==5.23.0", "torch==2.13.0", "sentencepiece", "protobuf"]
RECORD = Path(__file__).resolve().parents[1] / "golden" / "ctranslate2-converters"
QUANTIZED = [None if q == "none" else q for q in QUANTIZATIONS]
TORCH_POSITIONS = ("m2m", "nllb", "nllb-untied")  # torch's float32 sine differs by processor, in the last bit
ENCODINGS = ("decoder/position_encodings/encodings", "encoder/position_encodings/encodings")


def files(folder: Path) -> dict[str, str]:
    names = [p.name for p in folder.iterdir() if p.name == "model.bin" or p.name.endswith(".json")]
    ours = ("conversion.json", "warmstart.json")
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in sorted(names) if name not in ours}


def assert_same(ours: Path, theirs: Path, computed: bool) -> None:
    a, b = files(ours), files(theirs)
    if computed and a["model.bin"] != b["model.bin"]:
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


def compare_all(source: Path, convert: Callable[..., object], name: str, kind: str, computed: bool) -> None:
    """Every quantization: ``convert(output, quantization)`` is theirs. ``computed``: positions are torch's sines, which
    differ by processor in the last bit; then the record has ours."""
    recorded = {}
    for quantization in QUANTIZED:
        theirs, ours = (source.parent / f"{who}-{quantization}" for who in ("theirs", "ours"))
        convert(str(theirs), quantization=quantization)
        api.convert(source, ours, "ctranslate2", quantize=quantization)
        if name == "opennmt-py":  # the truth, docs/decisions/0011
            config = {**json.loads((theirs / "config.json").read_text()), "layer_norm_epsilon": 1e-6}
            (theirs / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        assert_same(ours, theirs, computed)
        recorded[quantization or "none"] = files(ours)
    place = RECORD / f"{name}.json"
    if os.environ.get("WARMSTART_RECORD"):
        RECORD.mkdir(exist_ok=True)
        known = json.loads(place.read_text()) if place.is_file() else {}
        place.write_text(json.dumps({**known, kind: recorded}, indent=1, sort_keys=True) + "\n")
    assert json.loads(place.read_text())[kind] == recorded


@pytest.mark.parametrize("kind", huggingface_models.KINDS)
def test_transformers(kind: str, tmp_path: Path) -> None:
    source = huggingface_models.write(tmp_path / "source", kind)
    compare_all(source, TransformersConverter(str(source)).convert, "transformers", kind, kind in TORCH_POSITIONS)


@pytest.mark.parametrize("kind", torch_models.ONMT_KINDS)
def test_opennmt_py(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = torch_models.write_onmt(tmp_path / "model.pt", kind)
    # Of an encoder-decoder their converter leaves gates out, in silence, and refuses RMS norms, for it asks for biases.
    more = {"gated": {"ffn_glu": True}, "rms": {"rms_norm": True}}.get(kind, {})

    def convert(output: str, quantization: str | None) -> None:
        with torch_models.torchtext():
            OpenNMTPyConverter(str(source), unsafe_deserialization=True).convert(output, quantization=quantization)

    if kind == "rms":
        with pytest.raises(ValueError, match="layer_norm/beta"):
            convert(str(tmp_path / "no"), None)
    original = transformer_spec.TransformerSpec.from_config.__func__
    told = classmethod(lambda cls, *args, **options: original(cls, *args, **options, **more))
    monkeypatch.setattr(transformer_spec.TransformerSpec, "from_config", told)
    compare_all(source, convert, "opennmt-py", kind, False)


@pytest.mark.parametrize("kind", torch_models.FAIRSEQ_KINDS)
def test_fairseq(kind: str, tmp_path: Path) -> None:
    source = torch_models.write_fairseq(tmp_path / "source", kind)

    def convert(output: str, quantization: str | None) -> None:
        with fairseq_stub.installed(kind):
            FairseqConverter(
                str(source), str(source.parent), source_lang="de", target_lang="en", unsafe_deserialization=True
            ).convert(output, quantization=quantization)

    compare_all(source, convert, "fairseq", kind, kind != "bart")


@pytest.mark.parametrize("kind", torch_models.EOLE_KINDS)
def test_eole(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their builder of specifications on the arrays of the directory; EOLE itself is not installed."""
    source = torch_models.write_eole(tmp_path / "source", kind)
    eole_ct2 = eole_stub.eole_ct2(monkeypatch)
    model = json.loads((source / "config.json").read_text())["model"]
    vocabulary = json.loads((source / "vocab.json").read_text())
    relative = 1 if model["embeddings"]["position_encoding_type"] == "Relative" else None
    config = SimpleNamespace(
        embeddings=SimpleNamespace(position_encoding_type=relative), mlp_activation_fn=model["mlp_activation_fn"],
        layer_norm=model["layer_norm"],
        encoder=SimpleNamespace(**model["encoder"]), decoder=SimpleNamespace(**model["decoder"], heads=model["heads"]),
    )  # fmt: skip

    class Filled(eole_ct2.EoleConverter):
        def _load(self):
            variables = {name: torch.from_numpy(array) for name, array in torch_models.eole_arrays(kind).items()}
            spec = eole_ct2._get_model_spec_seq2seq(config, variables, [vocabulary["src"]], [vocabulary["tgt"]], 1)
            spec.config.decoder_start_token = vocabulary["decoder_start_token"]
            for key in ("bos_token", "eos_token", "unk_token"):
                setattr(spec.config, key, vocabulary["specials"][key])
            spec.config.layer_norm_epsilon = 1e-6
            return spec

    compare_all(source, Filled("").convert, "eole", kind, False)


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


@pytest.mark.parametrize("kind", ["marian", "bart", "bart-untied", "mbart50", "pegasus", "m2m", "nllb", "nllb-untied"])
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


@pytest.mark.parametrize("kind", ["marian", "marian-untied"])
def test_the_native_engine_computes_marianmt(kind: str, tmp_path: Path) -> None:
    from warmstart.bundle.model import open_model
    from warmstart.inference.load import load_module

    source = huggingface_models.write(tmp_path / "source", kind)
    ours = load_module(open_model(source)).eval()
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(source).eval()
    ids, target = torch.tensor([[5, 6, 7, 8, 0]]), torch.tensor([[9, 10, 11, 0]])
    with torch.no_grad():
        start = torch.cat([torch.tensor([[theirs.config.decoder_start_token_id]]), target[:, :-1]], 1)
        expected = theirs(input_ids=ids, decoder_input_ids=start).logits[:, :, :-1]
        found = ours(ids, torch.tensor([5]), target)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["mbart", "mbart50", "pegasus", "nllb"])
def test_tables_of_slow_tokenizers_are_those_of_the_library(kind: str, tmp_path: Path) -> None:
    """A SentencePiece model without ``tokenizer.json``. transformers 5 puts NLLB's ``<mask>`` before the languages,
    where the published models (and version 4) have it behind them."""
    from warmstart.models.transformer.dialects.slow_tokenizers import with_table

    pegasus = kind == "pegasus"
    name = "spiece.model" if pegasus else "sentencepiece.bpe.model"
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} if pegasus else {}
    if kind == "nllb":
        ids["model_type"] = "bpe"
    classes = {"mbart": "MBartTokenizer", "mbart50": "MBart50Tokenizer", "pegasus": "PegasusTokenizer"}
    settings: dict[str, object] = {"tokenizer_class": classes.get(kind, "NllbTokenizer")}
    if kind == "nllb":
        from warmstart.models.transformer.dialects.languages import NLLB

        settings["additional_special_tokens"] = NLLB
    files = {name: huggingface_models.sentencepiece(**ids), "tokenizer_config.json": json.dumps(settings).encode()}
    model_type = {"pegasus": "pegasus", "nllb": "m2m_100"}.get(kind, "mbart")
    files["config.json"] = json.dumps({"model_type": model_type, "architectures": ["X"]}).encode()
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    ours = json.loads(with_table(files, {"model_type": model_type}, tmp_path)["vocab.json"])
    if kind == "nllb":
        assert theirs.pop("<mask>") < min(theirs[code] for code in NLLB)
        assert ours.pop("<mask>") > max(ours[code] for code in NLLB)
        assert sorted(theirs, key=theirs.__getitem__) == sorted(ours, key=ours.__getitem__)
    else:
        assert ours == theirs
