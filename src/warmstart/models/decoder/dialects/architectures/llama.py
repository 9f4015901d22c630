"""Llama and its kin."""

from __future__ import annotations

from warmstart.models.decoder.config import DecoderConfig
from warmstart.models.decoder.dialects.architectures.table import (
    BUFFERS,
    IGNORED,
    Architecture,
    Key,
    Values,
    activation,
)
from warmstart.models.decoder.dialects.rotary import Rotary
from warmstart.models.huggingface import Options

LLAMA_TOP = {"embedding": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
LLAMA_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "attention.output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
SANDWICH = {
    **LLAMA_LAYER,
    "attention_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}
RMS = {
    "norm": "rms", "norm_bias": False, "gated": True, "positions": "rotary", "attention_bias": False,
    "attention_output_bias": False, "ffn_bias": False,
}  # fmt: skip


def llama_keys(*sizes: int | None, tied: bool = False, longest: int = 2048, epsilon: float = 1e-6) -> tuple[Key, ...]:
    """``sizes``: vocabulary, model, layers, heads, heads with keys, inner, head (None: follows from the model's)."""
    vocab, d_model, layers, heads, kv, inner, head = sizes
    return (
        *(Key("vocab_size", "vocab_size", vocab), Key("hidden_size", "d_model", d_model)),
        *(Key("num_hidden_layers", "num_layers", layers), Key("num_attention_heads", "num_heads", heads)),
        *(Key("num_key_value_heads", "num_kv_heads", kv), Key("intermediate_size", "d_ff", inner)),
        *(Key("head_dim", "head_dim", head), Key("max_position_embeddings", "max_positions", longest)),
        *(Key("rms_norm_eps", "norm_epsilon", epsilon), Key("tie_word_embeddings", "tied_output", tied)),
    )


def _llama(options: Options, values: Values) -> Values:
    bias = bool(options.get("attention_bias", False))
    return {
        "attention_bias": bias, "attention_output_bias": bias, "ffn_bias": bool(options.get("mlp_bias", False)),
    }  # fmt: skip


LLAMA = Architecture(
    name="llama",
    model="LlamaForCausalLM",
    prefix="model.layers.{i}",
    top=LLAMA_TOP,
    layer=LLAMA_LAYER,
    keys=(*llama_keys(32000, 4096, 32, 32, None, 11008, None), activation("hidden_act", "silu")),
    always=RMS,
    expect={"rope_interleaved": (False,)},
    ignored=(*IGNORED, "is_llama_config", "max_sequence_length"),
    rotary=Rotary(),
    more=_llama,
    back=lambda c: {"attention_bias": c.attention_bias, "mlp_bias": c.ffn_bias},
    padding="cut",
    leftovers=BUFFERS,
    packs=True,
)

MISTRAL = Architecture(
    name="mistral",
    model="MistralForCausalLM",
    prefix="model.layers.{i}",
    top=LLAMA_TOP,
    layer=LLAMA_LAYER,
    keys=(
        *llama_keys(32000, 4096, 32, 32, 8, 14336, None, longest=131072),
        activation("hidden_act", "silu"),
        Key("sliding_window", "sliding_window", 4096),
    ),
    always=RMS,
    ignored=IGNORED,
    rotary=Rotary(),
    leftovers=BUFFERS,
    packs=True,
)


def _from_layer(options: Options, values: Values) -> Values:
    """Windows of the layers from ``max_window_layers`` on, where they are used at all."""
    used, first = options.get("use_sliding_window", False), options.get("max_window_layers", 28)
    width, kinds = options.get("sliding_window", 4096), options.get("layer_types", None)
    if not used or width is None:
        return {}
    layers = range(values["num_layers"])
    slides = [kind == "sliding_attention" for kind in kinds] if kinds else [i >= first for i in layers]
    return {"sliding_window": width, "sliding_layers": tuple(slides)} if any(slides) else {}


def _from_layer_back(c: DecoderConfig) -> Values:
    slides = c.sliding_window is not None
    kinds = c.sliding_layers or (slides,) * c.num_layers
    return {
        "use_sliding_window": slides, "sliding_window": c.sliding_window,
        "layer_types": ["sliding_attention" if s else "full_attention" for s in kinds],
    }  # fmt: skip


QWEN2 = Architecture(
    name="qwen2",
    model="Qwen2ForCausalLM",
    prefix="model.layers.{i}",
    top=LLAMA_TOP,
    layer=LLAMA_LAYER,
    keys=(
        *llama_keys(151936, 4096, 32, 32, 32, 22016, None, longest=32768),
        activation("hidden_act", "silu"),
    ),
    always={**RMS, "attention_bias": True},
    ignored=(*IGNORED, "use_mrope"),
    rotary=Rotary(),
    more=_from_layer,
    back=_from_layer_back,
    leftovers=BUFFERS,
    packs=True,
)


def _qwen3(options: Options, values: Values) -> Values:
    bias = bool(options.get("attention_bias", False))
    return {"attention_bias": bias, "attention_output_bias": bias, **_from_layer(options, values)}


QWEN3 = Architecture(
    name="qwen3",
    model="Qwen3ForCausalLM",
    prefix="model.layers.{i}",
    top=LLAMA_TOP,
    layer=LLAMA_LAYER,
    keys=(*llama_keys(151936, 4096, 32, 32, 32, 22016, 128, longest=32768), activation("hidden_act", "silu")),
    always={**RMS, "query_key_norm": True},
    ignored=IGNORED,
    rotary=Rotary(),
    more=_qwen3,
    back=lambda c: {"attention_bias": c.attention_bias, **_from_layer_back(c)},
    leftovers=BUFFERS,
    packs=True,
)
