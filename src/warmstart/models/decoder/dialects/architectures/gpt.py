"""GPT-2 and its kin."""

from __future__ import annotations

from warmstart.models.decoder.config import DecoderConfig
from warmstart.models.decoder.dialects.architectures.table import (
    BUFFERS,
    GELU_NEW,
    IGNORED,
    QKV,
    SUMMARY,
    Architecture,
    Fused,
    Key,
    Values,
    activation,
    grouped,
    halves,
    joined_transposed,
    sharded,
)
from warmstart.models.decoder.dialects.rotary import Rotary
from warmstart.models.huggingface import Options

_GPT_KEYS = (
    Key("vocab_size", "vocab_size", 50257),
    Key("n_embd|hidden_size", "d_model", 768),
    Key("n_layer|num_hidden_layers", "num_layers", 12),
    Key("n_head|num_attention_heads", "num_heads", 12),
    Key("n_positions|max_position_embeddings|n_ctx", "max_positions", 1024),
    Key("n_inner", "d_ff", None),
    Key("layer_norm_epsilon", "norm_epsilon", 1e-5),
)
_GPT_TOP = {
    "embedding": "transformer.wte",
    "positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT_LAYER = {
    "attention_norm": "ln_1",
    "attention.output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn.up": "mlp.c_fc",
    "ffn.down": "mlp.c_proj",
}


def _score_scale(options: Options, values: Values) -> Values:
    return {} if options.get("scale_attn_weights", True) else {"query_scale": 1.0}


def _score_scale_back(c: DecoderConfig) -> Values:
    return {"scale_attn_weights": c.query_scale is None}


GPT2 = Architecture(
    name="gpt2",
    model="GPT2LMHeadModel",
    prefix="transformer.h.{i}",
    top=_GPT_TOP,
    layer=_GPT_LAYER,
    keys=(
        *_GPT_KEYS,
        activation("activation_function", "gelu_new", GELU_NEW),
        Key("tie_word_embeddings", "tied_output", True),
    ),
    always={"positions": "learned"},
    expect={"scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)},
    ignored=(
        *(*IGNORED, *SUMMARY, "n_ctx", "reorder_and_upcast_attn", "n_special", "predict_special_tokens"),
        *("apply_query_key_layer_scaling", "normalize_attention_scores"),
    ),
    more=_score_scale,
    back=_score_scale_back,
    fused={"attn.c_attn": Fused(QKV, joined_transposed)},
    conv1d=True,
    padding="none",
    leftovers=BUFFERS,
)


def _big_code(options: Options, values: Values) -> Values:
    heads = 1 if options.get("multi_query", True) else values["num_heads"]
    return {"num_kv_heads": heads, **_score_scale(options, values)}


GPT_BIGCODE = Architecture(
    name="gpt_bigcode",
    model="GPTBigCodeForCausalLM",
    prefix="transformer.h.{i}",
    top=_GPT_TOP,
    layer=_GPT_LAYER,
    keys=(
        *_GPT_KEYS,
        activation("activation_function", "gelu_pytorch_tanh"),
        Key("tie_word_embeddings", "tied_output", True),
    ),
    always={"positions": "learned"},
    expect={"add_cross_attention": (False,)},
    ignored=(
        *IGNORED, *SUMMARY, "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "num_key_value_heads",
        "inference_runner", "max_batch_size", "max_sequence_length", "pad_key_length", "pre_allocate_kv_cache",
        "validate_runner_input", "n_ctx",
    ),
    more=_big_code,
    back=lambda c: {"multi_query": c.num_kv_heads == 1, **_score_scale_back(c)},
    fused={"attn.c_attn": Fused(QKV, grouped)},
    leftovers=BUFFERS,
)  # fmt: skip

_GPTJ_KEYS = (
    *(Key("vocab_size", "vocab_size", 50400), Key("n_embd|hidden_size", "d_model", 4096)),
    *(Key("n_layer|num_hidden_layers", "num_layers", 28), Key("n_head|num_attention_heads", "num_heads", 16)),
    *(Key("n_positions|max_position_embeddings", "max_positions", 2048), Key("n_inner", "d_ff", None)),
    *(Key("rotary_dim", "rotary_dim", 64), Key("layer_norm_epsilon", "norm_epsilon", 1e-5)),
    activation("activation_function", "gelu_new", GELU_NEW),
    Key("tie_word_embeddings", "tied_output", False),
)
_GPTJ_LAYER = {
    "attention_norm": "ln_1",
    "attention.output": "attn.out_proj",
    "ffn.up": "mlp.fc_in",
    "ffn.down": "mlp.fc_out",
}
_GPTJ_ALWAYS = {
    "positions": "rotary", "parallel": "shared", "attention_bias": False, "attention_output_bias": False,
    "output_bias": True,
}  # fmt: skip

GPTJ = Architecture(
    name="gptj",
    model="GPTJForCausalLM",
    prefix="transformer.h.{i}",
    top=_GPT_TOP,
    layer={
        **_GPTJ_LAYER,
        "attention.query": "attn.q_proj",
        "attention.key": "attn.k_proj",
        "attention.value": "attn.v_proj",
    },
    keys=_GPTJ_KEYS,
    always=_GPTJ_ALWAYS,
    expect={"scale_attn_weights": (True,), "rotary": (True,)},
    ignored=(*IGNORED, *SUMMARY, "n_ctx"),
    ops={"attention.query": halves, "attention.key": halves},
    padding="none",
    leftovers=BUFFERS,
)

CODEGEN = Architecture(
    name="codegen",
    model="CodeGenForCausalLM",
    prefix="transformer.h.{i}",
    top=_GPT_TOP,
    layer=_GPTJ_LAYER,
    keys=_GPTJ_KEYS,
    always=_GPTJ_ALWAYS,
    expect={"scale_attn_weights": (True,)},
    ignored=(*IGNORED, *SUMMARY, "n_ctx", "head_dim"),
    fused={"attn.qkv_proj": Fused(("attention.query", "attention.value", "attention.key"), sharded)},
    leftovers=BUFFERS,
)


def _neox(options: Options, values: Values) -> Values:
    bias = bool(options.get("attention_bias", True))
    parallel = "separate" if options.get("use_parallel_residual", True) else "none"
    return {"attention_bias": bias, "attention_output_bias": bias, "parallel": parallel}


GPT_NEOX = Architecture(
    name="gpt_neox",
    model="GPTNeoXForCausalLM",
    prefix="gpt_neox.layers.{i}",
    top={"embedding": "gpt_neox.embed_in", "norm": "gpt_neox.final_layer_norm", "output": "embed_out"},
    layer={
        "attention_norm": "input_layernorm",
        "attention.output": "attention.dense",
        "ffn_norm": "post_attention_layernorm",
        "ffn.up": "mlp.dense_h_to_4h",
        "ffn.down": "mlp.dense_4h_to_h",
    },
    keys=(
        *(Key("vocab_size", "vocab_size", 50432), Key("hidden_size", "d_model", 6144)),
        *(Key("num_hidden_layers", "num_layers", 44), Key("num_attention_heads", "num_heads", 64)),
        *(Key("intermediate_size", "d_ff", 24576), Key("max_position_embeddings", "max_positions", 2048)),
        *(Key("layer_norm_eps", "norm_epsilon", 1e-5), activation("hidden_act", "gelu")),
        Key("tie_word_embeddings", "tied_output", False),
    ),
    always={"positions": "rotary"},
    ignored=IGNORED,
    rotary=Rotary("rotary_emb_base", part="rotary_pct", default_part=0.25),
    more=_neox,
    back=lambda c: {"use_parallel_residual": c.parallel == "separate", "attention_bias": c.attention_bias},
    fused={"attention.query_key_value": Fused(QKV, grouped)},
    leftovers=BUFFERS,
    older={"lm_head": "embed_out"},
)
