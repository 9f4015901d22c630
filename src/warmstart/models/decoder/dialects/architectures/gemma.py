"""The three Gemmas."""

from __future__ import annotations

from typing import Any

from warmstart.models.decoder.config import DecoderConfig
from warmstart.models.decoder.dialects.architectures.llama import LLAMA_LAYER, LLAMA_TOP, RMS, SANDWICH, llama_keys
from warmstart.models.decoder.dialects.architectures.table import (
    ACTIVATIONS,
    BUFFERS,
    GELU_TORCH,
    IGNORED,
    Architecture,
    Key,
    Values,
)
from warmstart.models.decoder.dialects.rotary import Rotary, one, scaling
from warmstart.models.huggingface import Options

_GEMMA = {**RMS, "norm_offset": True, "scale_embeddings": True}
# Gemma's first files say gelu and mean its tanh form, as transformers reads them.
_GEMMA_ACTIVATIONS: dict[Any, str] = {**ACTIVATIONS, None: "gelu_tanh"}


def _gemma(options: Options, values: Values) -> Values:
    old, new = options.get("hidden_act", None), options.get("hidden_activation", None)
    name = new or ("gelu_pytorch_tanh" if old == "gelu" else old)
    if name not in _GEMMA_ACTIVATIONS:
        options.problem(f"hidden_activation: {name!r} is not supported", expected=", ".join(ACTIVATIONS))
    bias = bool(options.get("attention_bias", False))
    return {
        "activation": _GEMMA_ACTIVATIONS.get(name), "attention_bias": bias, "attention_output_bias": bias,
    }  # fmt: skip


GEMMA = Architecture(
    name="gemma",
    model="GemmaForCausalLM",
    prefix="model.layers.{i}",
    top=LLAMA_TOP,
    layer=LLAMA_LAYER,
    keys=llama_keys(256000, 3072, 28, 16, 16, 24576, 256, tied=True, longest=8192),
    always=_GEMMA,
    expect={"use_bidirectional_attention": (None, False)},
    ignored=IGNORED,
    rotary=Rotary(),
    more=_gemma,
    back=lambda c: {"hidden_act": GELU_TORCH[c.activation], "attention_bias": c.attention_bias},
    padding="cut",
    leftovers=BUFFERS,
)


def _gemma2(options: Options, values: Values) -> Values:
    scalar = options.get("query_pre_attn_scalar", 256)
    width, kinds = options.get("sliding_window", 4096), options.get("layer_types", None)
    every = _pattern(options)
    slides = [k == "sliding_attention" for k in kinds] if kinds else [
        bool((i + 1) % every) for i in range(values["num_layers"])
    ]  # fmt: skip
    if width is None or not any(slides):
        width, slides = None, []
    return {
        **_gemma(options, values),
        "query_scale": None if scalar == values["head_dim"] else scalar**-0.5,
        "sliding_window": width,
        "sliding_layers": None if all(slides) else tuple(slides),
    }


def _pattern(options: Options) -> int:
    """Every which layer sees all. transformers 4.53 and later say it twice, and ``layer_types``, which then counts."""
    spelt = [k for k in ("sliding_window_pattern", "_sliding_window_pattern") if k in options.values]
    return [*map(options.whole, spelt), 2][0]


def _gemma2_back(c: DecoderConfig) -> Values:
    slides = c.sliding_layers or (c.sliding_window is not None,) * c.num_layers
    scalar = c.head_dim if c.query_scale is None else c.query_scale**-2
    return {
        "hidden_activation": GELU_TORCH[c.activation],
        "attention_bias": c.attention_bias,
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        **({} if c.sliding_window is None else {"sliding_window": c.sliding_window}),
        "layer_types": ["sliding_attention" if s else "full_attention" for s in slides],
    }


_SOFTCAPS = (
    Key("attn_logit_softcapping", "attention_softcap", 50.0),
    Key("final_logit_softcapping", "logit_softcap", 30.0),
)

GEMMA2 = Architecture(
    name="gemma2",
    model="Gemma2ForCausalLM",
    prefix="model.layers.{i}",
    top=LLAMA_TOP,
    layer=SANDWICH,
    keys=(*llama_keys(256000, 2304, 26, 8, 4, 9216, 256, tied=True, longest=8192), *_SOFTCAPS),
    always={**_GEMMA, "norm_place": "both"},
    expect={"use_bidirectional_attention": (None, False)},
    ignored=(*IGNORED, "cache_implementation", "sliding_window_size"),
    rotary=Rotary(),
    more=_gemma2,
    back=_gemma2_back,
    padding="cut",
    leftovers=BUFFERS,
)


def _gemma3(options: Options, values: Values) -> Values:
    spelt = {"sliding_window_pattern", "_sliding_window_pattern"} & set(options.values)
    if not spelt and options.get("layer_types", None) is None:
        options.values = {**options.values, "_sliding_window_pattern": 6}
    given: Values = options.get("rope_parameters", None) or {}
    full, local = given.get("full_attention"), given.get("sliding_attention")
    full = full or options.get("rope_scaling", None) or {}
    base, other = options.get("rope_theta", 1e6), options.get("rope_local_base_freq", 1e4)
    found = one(options, full, values["head_dim"], base, None)
    near = one(options, local or {}, values["head_dim"], other, None)
    if near.get("rotary_scaling") is not None:
        options.problem("rotary positions of layers with a window are scaled, which is not supported")
    alike = near.get("rotary_base") == found.get("rotary_base") and found.get("rotary_scaling") is None
    return {
        **_gemma2(options, values),
        **found,
        "local_rotary_base": None if alike else near.get("rotary_base"),
    }


def _gemma3_back(c: DecoderConfig) -> Values:
    near = c.rotary_base if c.local_rotary_base is None else c.local_rotary_base
    rope = {
        "full_attention": {"rope_theta": c.rotary_base, **scaling(c)},
        "sliding_attention": {"rope_theta": near, "rope_type": "default"},
    }
    return {**_gemma2_back(c), "rope_parameters": rope}


GEMMA3 = Architecture(
    name="gemma3_text",
    model="Gemma3ForCausalLM",
    prefix="model.layers.{i}",
    top=LLAMA_TOP,
    layer=SANDWICH,
    keys=(
        *llama_keys(262208, 2304, 26, 8, 4, 9216, 256, tied=True, longest=131072),
        Key("attn_logit_softcapping", "attention_softcap", None),
        Key("final_logit_softcapping", "logit_softcap", None),
    ),
    always={**_GEMMA, "norm_place": "both", "query_key_norm": True},
    expect={"use_bidirectional_attention": (False, None)},
    ignored=(*IGNORED, "cache_implementation"),
    more=_gemma3,
    back=_gemma3_back,
    padding="cut",
    leftovers=BUFFERS,
    packs=True,
)
