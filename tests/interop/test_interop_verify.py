"""``warmstart verify``: transformers beside CTranslate2's engine, for every family, and where the engine is wrong."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import torch
import transformers as t

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import test_interop_convert_t5 as t5

import decoder_models
import huggingface_models
import pretrained_models
from warmstart import api

REQUIRES = ["ctranslate2==4.8.5", "transformers==5.23.0", "torch==2.13.0", "sentencepiece"]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    t.logging.set_verbosity_error()


def verified(source: Path, tmp_path: Path, quantize: str | None = None, **options: object) -> dict:
    """The facts of a directory of transformers beside what it is converted to."""
    api.convert(source, tmp_path / "ct2", "ctranslate2", quantize=quantize)
    return api.verify(source, tmp_path / "ct2", **options)


def assert_same(facts: dict) -> None:
    assert facts["same"], json.dumps(facts, indent=1)
    assert facts["engines"] == ["transformers", "ctranslate2"]


# MarianMT has a module here; the other classes are computed by transformers.
@pytest.mark.parametrize("kind", [k for k in huggingface_models.KINDS if not k.startswith("marian")])
def test_encoder_decoders(kind: str, tmp_path: Path) -> None:
    facts = verified(huggingface_models.write(tmp_path / "source", kind), tmp_path, count=20)
    assert_same(facts)
    assert facts["outputs_that_differ"] == 0
    assert facts["largest"] < 1e-4


@pytest.mark.parametrize("case", [c for c in t5.CASES if c != "umt5-untied-unscaled"])
def test_t5(case: str, tmp_path: Path) -> None:
    assert_same(verified(t5.save(tmp_path / "source", case), tmp_path, count=10))


@pytest.mark.parametrize("kind", [k for k in decoder_models.models() if k not in ("gemma2", "phi3-long")])
def test_decoders(kind: str, tmp_path: Path) -> None:
    assert_same(verified(decoder_models.write(tmp_path / "source", kind), tmp_path, count=10))


@pytest.mark.parametrize("kind", [k for k in pretrained_models.KINDS if "wav2vec2-bert" not in k])
def test_encoders_and_sound(kind: str, tmp_path: Path) -> None:
    assert_same(verified(pretrained_models.write(tmp_path / "source", kind), tmp_path, count=5))


MADE = {
    **dict.fromkeys(("whisper", "whisper-plain", "wav2vec2", "camembert", "bert"), pretrained_models.write),
    **dict.fromkeys(("gpt2", "llama", "gemma", "bloom"), decoder_models.write),
    **dict.fromkeys(("bart", "m2m"), huggingface_models.write),
}


@pytest.mark.parametrize("quantize", ["float16", "bfloat16", "int16", "int8"])
@pytest.mark.parametrize("kind", MADE)
def test_what_rounding_does_is_explained(kind: str, quantize: str, tmp_path: Path) -> None:
    facts = verified(MADE[kind](tmp_path / "source", kind), tmp_path, quantize, count=10)
    assert_same(facts)
    assert facts["tolerance_from"] == "another rounding"


def test_conversions_are_verified_as_they_are_written(tmp_path: Path) -> None:
    source = decoder_models.write(tmp_path / "source", "gpt2")
    facts = api.convert(source, tmp_path / "ct2", "ctranslate2", quantize="float16", verify=True)
    assert facts["verification"]["engines"] == ["transformers", "ctranslate2"]
    assert facts["verification"]["quantizations"] == ["float32", "float16"]


# Where the engine is wrong, or transformers is (docs/decisions/0031).


def test_gemma_2_without_its_cap_is_another_model(tmp_path: Path) -> None:
    facts = verified(decoder_models.write(tmp_path / "source", "gemma2"), tmp_path, count=10)
    assert not facts["same"]
    assert 1e-4 < facts["largest"] < 1e-2


def test_the_adapters_of_wav2vec2_bert_are_another_model(tmp_path: Path) -> None:
    """As small as the engine has it."""
    source, other = tmp_path / "source", pretrained_models.write(tmp_path / "other", "wav2vec2-bert")
    config = t.Wav2Vec2BertConfig(
        vocab_size=12, hidden_size=1024, num_attention_heads=16, num_hidden_layers=1, intermediate_size=64,
        add_adapter=True, num_adapter_layers=1, hidden_act="swish",
    )  # fmt: skip
    torch.manual_seed(0)
    t.Wav2Vec2BertForCTC(config).save_pretrained(source)
    for name in ("vocab.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(other / name, source / name)
    facts = verified(source, tmp_path, count=3)
    assert not facts["same"]
    assert facts["largest"] > 0.1


LONG = {"rope_type": "longrope", "long_factor": [1.5, 2.0], "short_factor": [1.0, 1.25], "rope_theta": 10000.0}


def long_rope(folder: Path, longest: int, original: int, **more: float) -> Path:
    config = t.Phi3Config(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=longest, original_max_position_embeddings=original,
        rope_parameters={**LONG, **more}, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    model.save_pretrained(folder)
    decoder_models.tokenizer(folder, 48)
    return folder


@pytest.mark.parametrize(
    ("longest", "original", "more", "lost"),
    [
        (4096, 2048, {}, set()),
        (2048, 2048, {}, set()),
        (64, 32, {}, {"original_max_positions"}),
        (5000, 2048, {}, {"rotary_scaling.attention_factor"}),
        (4096, 2048, {"attention_factor": 1.5}, {"rotary_scaling.attention_factor"}),
        (4096, 2048, {"factor": 4.0}, {"rotary_scaling.attention_factor"}),
        (8192, 2048, {"rope_type": "default"}, set()),
    ],
)
def test_long_rope_is_exact_or_named(longest: int, original: int, more: dict, lost: set, tmp_path: Path) -> None:
    """docs/decisions/0032."""
    source = long_rope(tmp_path / "source", longest, original, **more)
    facts = api.convert(source, tmp_path / "ct2", "ctranslate2")
    assert set(facts["ledger"]["lossy"]) == lost
    assert api.verify(source, tmp_path / "ct2", count=10)["same"] == (not lost)


def test_the_engine_keeps_long_factors_once_it_took_them(tmp_path: Path) -> None:
    """Why a process that saw one long text answers short ones otherwise from then on."""
    source = long_rope(tmp_path / "source", 4096, 2048)
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    generator, short = ctranslate2.Generator(str(tmp_path / "ct2")), [[5, 9, 17, 30, 22]]
    before = np.array(generator.forward_batch(short))
    generator.forward_batch([[5] * 2100])
    after = np.array(generator.forward_batch(short))
    assert np.abs(before - after).max() > 1e-2


def test_transformers_scales_every_umt5(tmp_path: Path) -> None:
    assert not verified(t5.save(tmp_path / "source", "umt5-untied-unscaled"), tmp_path, count=5)["same"]
