"""``ct2-transformers-converter`` and ``warmstart convert`` write the same bytes of decoder-only models.

``WARMSTART_RECORD=1`` writes what ``tests/export/test_export_decoder.py`` stands on: ``models.json`` (configurations
and shapes as transformers saves them) and ``digests.json`` (of the reference's files).

Loaders that break on today's transformers are replaced by ``ctranslate2.specs`` filled here: GPT-NeoX (``rotary_pct``
and ``embed_out`` given back to the loader), MPT (registered under the name of a class that is gone), Phi and Phi-3
(written out).
"""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import ctranslate2
import numpy as np
import pytest
import torch
import transformers as t
from ctranslate2.converters import TransformersConverter
from ctranslate2.converters import transformers as loaders
from ctranslate2.specs import attention_spec, common_spec, transformer_spec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import decoder_models
from warmstart import api
from warmstart.export.quantize import QUANTIZATIONS
from warmstart.formats.detect import open_checkpoint

REQUIRES = ["ctranslate2==4.8.5", "transformers==5.23.0", "torch==2.13.0", "sentencepiece"]
RECORD = bool(os.environ.get("WARMSTART_RECORD"))
QUANTIZED = [None if q == "none" else q for q in QUANTIZATIONS]

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, **IDS,
}  # fmt: skip
MHA = {**LLAMA, "num_key_value_heads": 4}
GPT = {
    "vocab_size": 48,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 20,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {
    "vocab_size": 48, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 20, **IDS,
}  # fmt: skip
NEOX = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FALCON = {
    "vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024, "rope_theta": 500000.0,
}  # fmt: skip
LONG = {"rope_type": "longrope", "long_factor": [1.5, 2.0], "short_factor": [1.0, 1.25], "rope_theta": 10000.0}
BFLOAT16, FLOAT16 = {"dtype": "bfloat16"}, {"dtype": "float16"}


def configs() -> dict[str, t.PretrainedConfig]:
    return {
        "gpt2": t.GPT2Config(**GPT),
        "gpt2-untied-float16": t.GPT2Config(
            **GPT, n_inner=40, tie_word_embeddings=False, activation_function="relu", **FLOAT16
        ),
        "llama": t.LlamaConfig(**LLAMA),
        "llama-bfloat16": t.LlamaConfig(**LLAMA, **BFLOAT16),
        "llama-biases": t.LlamaConfig(
            **MHA, tie_word_embeddings=True, rms_norm_eps=1e-5, attention_bias=True, mlp_bias=True
        ),
        "llama-linear": t.LlamaConfig(**LLAMA, rope_parameters=LINEAR),
        "llama-llama3": t.LlamaConfig(**LLAMA, rope_parameters=LLAMA3),
        "mistral": t.MistralConfig(**LLAMA, sliding_window=8),
        "mistral-wide": t.MistralConfig(**LLAMA, sliding_window=None, head_dim=8),
        "qwen2": t.Qwen2Config(**LLAMA),
        "qwen2-tied": t.Qwen2Config(**LLAMA, tie_word_embeddings=True),
        "qwen3": t.Qwen3Config(**LLAMA, head_dim=8),
        "gemma": t.GemmaConfig(**LLAMA, head_dim=8),
        "gemma2": t.Gemma2Config(**LLAMA, head_dim=8, query_pre_attn_scalar=8),
        "gemma3": t.Gemma3TextConfig(
            **{**LLAMA, "num_hidden_layers": 7}, head_dim=8, query_pre_attn_scalar=8, sliding_window=16
        ),
        "opt": t.OPTConfig(**OPT),
        "opt-projected": t.OPTConfig(**OPT, word_embed_proj_dim=8, do_layer_norm_before=False),
        "neox": t.GPTNeoXConfig(**NEOX, rotary_pct=0.5),
        "neox-serial": t.GPTNeoXConfig(**NEOX, use_parallel_residual=False),
        "gptj": t.GPTJConfig(**GPT, rotary_dim=2),
        "codegen": t.CodeGenConfig(**{**GPT, "n_embd": 32}, rotary_dim=4),
        "bigcode": t.GPTBigCodeConfig(**GPT),
        "bloom": t.BloomConfig(vocab_size=48, hidden_size=16, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
        "falcon-7b": t.FalconConfig(**FALCON),
        "falcon-40b": t.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2, multi_query=False),
        "falcon-rw": t.FalconConfig(**FALCON, alibi=True, parallel_attn=False, multi_query=False, bias=True),
        "mpt": t.MptConfig(vocab_size=48, d_model=16, n_layers=2, n_heads=4),
        "mpt-bfloat16": t.MptConfig(vocab_size=48, d_model=16, n_layers=2, n_heads=4, **BFLOAT16),
        "phi": t.PhiConfig(**NEOX),
        "phi3": t.Phi3Config(**LLAMA),
        "phi3-long": t.Phi3Config(
            **LLAMA, max_position_embeddings=64, original_max_position_embeddings=32, rope_parameters=LONG
        ),
    }


KINDS = list(configs())


class NeoX(loaders.GPTNeoXLoader):
    def get_model_spec(self, model):
        model.config.rotary_pct = model.config.rope_parameters["partial_rotary_factor"]
        model.embed_out = model.lm_head
        return super().get_model_spec(model)


class Phi(loaders.PhiLoader):
    architecture_name = "PhiForCausalLM"

    def get_model_spec(self, model):
        c = model.config
        rotary = int(c.hidden_size // c.num_attention_heads * c.rope_parameters["partial_rotary_factor"])
        spec = transformer_spec.TransformerDecoderModelSpec.from_config(
            c.num_hidden_layers, c.num_attention_heads, activation=common_spec.Activation.GELUTanh, rotary_dim=rotary,
            rotary_interleave=False, parallel_residual=True, shared_layer_norm=True,
        )  # fmt: skip
        spec.decoder.scale_embeddings = False
        self.set_embeddings(spec.decoder.embeddings, model.model.embed_tokens)
        self.set_linear(spec.decoder.projection, model.lm_head)
        self.set_layer_norm(spec.decoder.layer_norm, model.model.final_layernorm)
        for out, layer in zip(spec.decoder.layer, model.model.layers, strict=True):
            own = layer.self_attn
            parts = (own.q_proj, own.k_proj, own.v_proj)
            self.set_layer_norm(out.shared_layer_norm, layer.input_layernorm)
            out.self_attention.linear[0].weight = torch.cat([part.weight for part in parts])
            out.self_attention.linear[0].bias = torch.cat([part.bias for part in parts])
            self.set_linear(out.self_attention.linear[1], own.dense)
            self.set_linear(out.ffn.linear_0, layer.mlp.fc1)
            self.set_linear(out.ffn.linear_1, layer.mlp.fc2)
        return spec


class Phi3(loaders.Phi3Loader):
    architecture_name = "Phi3ForCausalLM"

    def get_model_spec(self, model):
        c, rope = model.config, model.config.rope_parameters
        long = rope["rope_type"] == "longrope"
        spec = transformer_spec.TransformerDecoderModelSpec.from_config(
            c.num_hidden_layers, c.num_attention_heads, activation=common_spec.Activation.SWISH, ffn_glu=True,
            rms_norm=True, rotary_dim=0, rotary_interleave=False, rotary_base=rope["rope_theta"],
            rotary_scaling_type=attention_spec.RotaryScalingType.Su if long else None,
            original_max_position_embeddings=c.original_max_position_embeddings,
            max_position_embeddings=c.max_position_embeddings, num_heads_kv=c.num_key_value_heads,
        )  # fmt: skip
        spec.decoder.scale_embeddings = False
        self.set_embeddings(spec.decoder.embeddings, model.model.embed_tokens)
        self.set_linear(spec.decoder.projection, model.lm_head)
        self.set_layer_norm(spec.decoder.layer_norm, model.model.norm)
        for out, layer in zip(spec.decoder.layer, model.model.layers, strict=True):
            self.set_layer_norm(out.self_attention.layer_norm, layer.input_layernorm)
            self.set_layer_norm(out.ffn.layer_norm, layer.post_attention_layernorm)
            self.set_linear(out.self_attention.linear[0], layer.self_attn.qkv_proj)
            self.set_linear(out.self_attention.linear[1], layer.self_attn.o_proj)
            if long:
                self.set_rotary_embeddings(out.self_attention, rope["long_factor"], rope["short_factor"])
            gate, up = layer.mlp.gate_up_proj.weight.chunk(2, dim=0)
            out.ffn.linear_0.weight, out.ffn.linear_0_noact.weight = gate, up
            self.set_linear(out.ffn.linear_1, layer.mlp.down_proj)
        return spec

    def set_config(self, config, model, tokenizer):
        super().set_config(config, model, tokenizer)
        if model.config.rms_norm_eps != 1e-6:  # what the engine takes where nothing is said
            config.layer_norm_epsilon = model.config.rms_norm_eps


REPAIRED = {"GPTNeoXConfig": NeoX, "MptConfig": loaders.MPTLoader, "PhiConfig": Phi, "Phi3Config": Phi3}


@pytest.fixture(autouse=True)
def repaired_loaders(monkeypatch):
    t.logging.set_verbosity_error()
    for name, loader in REPAIRED.items():
        monkeypatch.setitem(loaders._MODEL_LOADERS, name, loader())


def files(folder: Path) -> dict[str, str]:
    names = ("model.bin", "config.json", "vocabulary.json")
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in names}


def record(name: str, kind: str, value: object) -> None:
    path = decoder_models.GOLDEN / name
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text()) if path.is_file() else {}
    text = json.dumps({**known, kind: value}, sort_keys=True, separators=(",", ":"))
    path.write_text(text.replace('},"', '},\n"') + "\n")


# What the reference leaves out, so that the engine scales nothing.
OURS_SAY = ("rotary_scaling_factor", "original_max_position_embeddings")


def assert_same(ours: Path, theirs: Path, kind: str) -> dict[str, str]:
    """Equal to the byte; under ``llama3`` scaling but for what the reference leaves out. The digests to be kept."""
    a, b = files(ours), files(theirs)
    if kind == "llama-llama3":
        one, two = open_checkpoint(ours / "model.bin"), open_checkpoint(theirs / "model.bin")
        more = set(one.entries) - set(two.entries)
        assert {name.rpartition("/")[2] for name in more} == set(OURS_SAY)
        assert set(two.entries) <= set(one.entries)
        assert dict(one.ties) == dict(two.ties)
        for name in two.entries:
            assert one.read(name).tobytes() == two.read(name).tobytes(), name
        b["model.bin"] = a["model.bin"]
    assert a == b
    return b


@pytest.mark.parametrize("kind", KINDS)
def test_every_quantization_is_theirs(kind: str, tmp_path: Path) -> None:
    model = t.AutoModelForCausalLM.from_config(configs()[kind])
    model.save_pretrained(tmp_path / "fresh")
    saved = open_checkpoint(tmp_path / "fresh" / "model.safetensors")
    config = json.loads((tmp_path / "fresh/config.json").read_text())
    shapes = {name: list(entry.shape) for name, entry in saved.entries.items()}
    if RECORD:
        record("models.json", kind, {"config": config, "arrays": shapes})
    assert decoder_models.models()[kind] == {"config": config, "arrays": shapes}
    source = decoder_models.write(tmp_path / "source", kind)
    found = {}
    for quantization in QUANTIZED:
        theirs, ours = tmp_path / f"theirs-{quantization}", tmp_path / f"ours-{quantization}"
        TransformersConverter(str(source)).convert(str(theirs), quantization=quantization)
        api.convert(source, ours, "ctranslate2", quantize=quantization)
        found[quantization or "none"] = assert_same(ours, theirs, kind)
    if RECORD:
        record("digests.json", kind, found)
    assert json.loads((decoder_models.GOLDEN / "digests.json").read_text())[kind] == found


@pytest.mark.parametrize(("kind", "layout"), [(k, v) for k, vs in decoder_models.PACKED.items() for v in vs])
def test_packed_weights_are_passed_on_as_theirs(kind: str, layout: str, tmp_path: Path) -> None:
    """Their loader on stand-ins of modules: the real ones need AutoAWQ and a GPU."""
    source = decoder_models.write_packed(tmp_path / "source", kind, layout)
    saved = open_checkpoint(source / "model.safetensors")
    model = SimpleNamespace(config=configs()[kind])
    for name in saved.entries:
        *path, last = name.split(".")
        at = model
        for part in path:
            at.__dict__.setdefault(part, SimpleNamespace())
            at = at.__dict__[part]
        setattr(at, last, torch.from_numpy(np.array(saved.read(name))))
    layers = vars(model.model.layers)
    model.model.layers = [layers[str(i)] for i in range(len(layers))]
    model.config.quantization_config = SimpleNamespace(
        quant_method="awq", version=layout, bits=4, group_size=decoder_models.GROUP
    )
    loader = loaders.Phi3Loader() if kind == "phi3" else loaders._MODEL_LOADERS[type(model.config).__name__]
    if kind == "phi3":
        model.config.rope_parameters = None
        model.config.rope_theta = 10000.0
        for layer in model.model.layers:
            layer.self_attn.rotary_emb = SimpleNamespace(long_factor=None, short_factor=None)
    spec = loader(model, t.AutoTokenizer.from_pretrained(source))
    if kind == "phi3":
        spec.config.layer_norm_epsilon = None if model.config.rms_norm_eps == 1e-6 else model.config.rms_norm_eps
    spec.validate()
    spec.optimize()
    (tmp_path / "theirs").mkdir()
    spec.save(str(tmp_path / "theirs"))
    api.convert(source, tmp_path / "ours", "ctranslate2")
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")
    if RECORD:
        record("digests.json", f"{kind}-awq-{layout}", {"none": files(tmp_path / "theirs")})


@pytest.mark.parametrize("quantization", [None, "int8", "int16", "float16"])
def test_smoothed_activations_are_theirs(quantization: str | None, tmp_path: Path) -> None:
    source = decoder_models.write(tmp_path / "source", "opt")
    scales = {k: torch.from_numpy(v) for k, v in decoder_models.activation_scales(source).items()}
    torch.save(scales, tmp_path / "scales.pt")
    path = str(tmp_path / "scales.pt")
    TransformersConverter(str(source), activation_scales=path).convert(str(tmp_path / "a"), quantization=quantization)
    api.convert(source, tmp_path / "b", "ctranslate2", quantize=quantization, activation_scales=path)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    if RECORD:
        known = json.loads((decoder_models.GOLDEN / "digests.json").read_text()).get("opt-smoothed", {})
        record("digests.json", "opt-smoothed", {**known, quantization or "none": files(tmp_path / "a")})


# The engine does not cap attention's scores (Gemma 2), cannot be fed more than a window at once (Mistral), and takes
# LongRoPE's other factors (with the reference's file as with ours).
FAR = {"gemma2": 2e-2}


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("mistral", "phi3-long")])
def test_the_engine_answers_as_the_library_does(kind: str, tmp_path: Path) -> None:
    source = decoder_models.write(tmp_path / "source", kind, dtype="float32")
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    tokens = json.loads((tmp_path / "ct2/vocabulary.json").read_text())
    ids = [5, 9, 17, 30, 22, 11, 7, 8, 9, 10, 33, 3, 4, 5]
    given = ctranslate2.Generator(str(tmp_path / "ct2")).forward_batch([[tokens[i] for i in ids]])
    model = t.AutoModelForCausalLM.from_pretrained(source).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(np.array(given)[0], expected, rtol=0, atol=FAR.get(kind, 5e-6))


@pytest.mark.parametrize("kind", KINDS)
def test_the_library_loads_what_returns_and_answers_alike(kind: str, tmp_path: Path) -> None:
    source = decoder_models.write(tmp_path / "source", kind)
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    api.convert(tmp_path / "ct2", tmp_path / "back", "transformers")
    for name in ("warmstart.json", "vocabularies/text.json"):  # as CTranslate2's own converter leaves a model
        (tmp_path / "ct2" / name).unlink()
    api.convert(tmp_path / "ct2", tmp_path / "bare", "transformers")
    ids, logits = torch.arange(3, 15)[None], []
    for folder in (source, tmp_path / "back", tmp_path / "bare"):
        model = t.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
    assert torch.equal(logits[0], logits[1])
    assert t.AutoTokenizer.from_pretrained(tmp_path / "back").get_vocab()
    atol = FAR.get(kind, 5e-6)
    torch.testing.assert_close(logits[0], logits[2], rtol=0, atol=atol)


# Settings that the reference's loaders leave out or have as constants: its files of these models answer otherwise.
DELIBERATE = {
    "llama-head": lambda: t.LlamaConfig(**LLAMA, head_dim=8),
    "llama3-factor": lambda: t.LlamaConfig(
        **LLAMA, rope_parameters={**LLAMA3, "factor": 32.0, "rope_theta": 10.0, "original_max_position_embeddings": 16}
    ),
    "gemma-base": lambda: t.GemmaConfig(
        **LLAMA, head_dim=8, rope_parameters={"rope_type": "default", "rope_theta": 7.0}
    ),
    "gemma3-scale": lambda: t.Gemma3TextConfig(
        **{**LLAMA, "num_hidden_layers": 7}, head_dim=8, query_pre_attn_scalar=32, sliding_window=16,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5.0},
        },
    ),
    "neox-base": lambda: t.GPTNeoXConfig(
        **NEOX, rope_parameters={"rope_type": "default", "rope_theta": 5.0, "partial_rotary_factor": 0.5}
    ),
    "gpt2-epsilon": lambda: t.GPT2Config(**GPT, layer_norm_epsilon=0.1),
    "gpt2-unscaled": lambda: t.GPT2Config(**GPT, scale_attn_weights=False),
    "bigcode-heads": lambda: t.GPTBigCodeConfig(**GPT, multi_query=False),
    "falcon-base": lambda: t.FalconConfig(**FALCON, rope_parameters={"rope_type": "default", "rope_theta": 5.0}),
    "falcon-11b": lambda: t.FalconConfig(
        **FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1
    ),
    "phi-grouped": lambda: t.PhiConfig(**{**NEOX, "num_attention_heads": 4}, num_key_value_heads=2),
    "phi3-partial": lambda: t.Phi3Config(
        **LLAMA, rms_norm_eps=0.1,
        rope_parameters={"rope_type": "default", "rope_theta": 5.0, "partial_rotary_factor": 0.5},
    ),
    "mpt-scale": lambda: t.MptConfig(
        vocab_size=48, d_model=16, n_layers=2, n_heads=4, attn_config={"softmax_scale": 1.5}
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DELIBERATE)
def test_what_the_reference_leaves_out_is_said(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(DELIBERATE[kind]()).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    model.save_pretrained(tmp_path / "source")
    decoder_models.tokenizer(tmp_path / "source", 48)
    api.convert(tmp_path / "source", tmp_path / "ct2", "ctranslate2")
    tokens = json.loads((tmp_path / "ct2/vocabulary.json").read_text())
    ids = [5, 9, 17, 30, 22, 11, 7, 8, 9, 10, 33, 3, 4, 5]
    given = ctranslate2.Generator(str(tmp_path / "ct2")).forward_batch([[tokens[i] for i in ids]])
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(np.array(given)[0], expected, rtol=1e-4, atol=1e-4)
    api.convert(tmp_path / "ct2", tmp_path / "back", "transformers")
    before, after = (open_checkpoint(tmp_path / n / "model.safetensors") for n in ("source", "back"))
    assert {n: before.read(n).tobytes() for n in before.entries} == {n: after.read(n).tobytes() for n in after.entries}
