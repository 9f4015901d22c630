"""OPT, BLOOM, Falcon, MPT and the Phis."""

from __future__ import annotations

from warmstart.models.decoder.config import DecoderConfig
from warmstart.models.decoder.dialects.architectures.llama import LLAMA_LAYER, LLAMA_TOP, RMS, llama_keys
from warmstart.models.decoder.dialects.architectures.table import (
    BUFFERS,
    GELU_NEW,
    IGNORED,
    QKV,
    Architecture,
    Fused,
    Key,
    Values,
    activation,
    gate_up,
    grouped,
    joined,
)
from warmstart.models.decoder.dialects.rotary import Rotary
from warmstart.models.huggingface import Options


def _opt(options: Options, values: Values) -> Values:
    narrow, bias = options.get("word_embed_proj_dim", None), bool(options.get("enable_bias", True))
    before, removed = bool(options.get("do_layer_norm_before", True)), options.get("_remove_final_layer_norm", False)
    return {
        "embedding_size": None if narrow in (None, values["d_model"]) else narrow,
        "norm_place": "pre" if before else "post",
        "final_norm": before and not removed,
        "attention_bias": bias, "attention_output_bias": bias, "ffn_bias": bias,
    }  # fmt: skip


def _opt_back(c: DecoderConfig) -> Values:
    return {
        "word_embed_proj_dim": c.embedding_size or c.d_model, "enable_bias": c.attention_bias,
        "do_layer_norm_before": c.norm_place == "pre",
        "_remove_final_layer_norm": c.norm_place == "pre" and not c.final_norm,
    }  # fmt: skip


_OPT = "model.decoder"
OPT = Architecture(
    name="opt",
    model="OPTForCausalLM",
    prefix=f"{_OPT}.layers.{{i}}",
    top={
        "embedding": f"{_OPT}.embed_tokens",
        "positions": f"{_OPT}.embed_positions",
        "project_in": f"{_OPT}.project_in",
        "project_out": f"{_OPT}.project_out",
        "norm": f"{_OPT}.final_layer_norm",
        "output": "lm_head",
    },
    layer={
        "attention_norm": "self_attn_layer_norm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.out_proj",
        "ffn_norm": "final_layer_norm",
        "ffn.up": "fc1",
        "ffn.down": "fc2",
    },
    keys=(
        *(Key("vocab_size", "vocab_size", 50272), Key("hidden_size", "d_model", 768)),
        *(Key("num_hidden_layers", "num_layers", 12), Key("num_attention_heads", "num_heads", 12)),
        *(Key("ffn_dim", "d_ff", 3072), Key("max_position_embeddings", "max_positions", 2048)),
        *(activation("activation_function", "relu"), Key("tie_word_embeddings", "tied_output", True)),
    ),
    always={"positions": "learned", "position_offset": 2},
    expect={
        "layer_norm_elementwise_affine": (True,),
        "learned_embeddings": (True,),
        "scale_embeddings": (False,),
    },
    ignored=(*IGNORED, "dropout", "activation_dropout", "layerdrop"),
    more=_opt,
    back=_opt_back,
    padding="madeup",
    smooth={"attention_norm": QKV, "ffn_norm": ("ffn.up",)},
)

_BLOOM_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.output": "self_attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn.up": "mlp.dense_h_to_4h",
    "ffn.down": "mlp.dense_4h_to_h",
}

BLOOM = Architecture(
    name="bloom",
    model="BloomForCausalLM",
    prefix="transformer.h.{i}",
    top={
        "embedding": "transformer.word_embeddings",
        "embedding_norm": "transformer.word_embeddings_layernorm",
        "norm": "transformer.ln_f",
        "output": "lm_head",
    },
    layer=_BLOOM_LAYER,
    keys=(
        *(Key("vocab_size", "vocab_size", 250880), Key("hidden_size|n_embed", "d_model", 64)),
        *(Key("n_layer|num_hidden_layers", "num_layers", 2), Key("n_head|num_attention_heads", "num_heads", 8)),
        *(Key("layer_norm_epsilon", "norm_epsilon", 1e-5), Key("tie_word_embeddings", "tied_output", True)),
    ),
    always={"positions": "alibi", "alibi_positive": True, "embedding_norm": True, "activation": "gelu_tanh"},
    expect={"apply_residual_connection_post_layernorm": (False,)},
    ignored=(
        *IGNORED, "slow_but_exact", "seq_length", "offset_alibi", "masked_softmax_fusion", "attention_softmax_in_fp32",
        "bias_dropout_fusion", "skip_bias_add", "skip_bias_add_qkv", "hidden_dropout_prob", "unk_token_id", "n_inner",
    ),
    fused={"self_attention.query_key_value": Fused(QKV, grouped)},
)  # fmt: skip


def _falcon(options: Options, values: Values) -> Values:
    first = "n_head_kv" in options.values  # what RefinedWeb said of the new one
    new, alibi = bool(options.get("new_decoder_architecture", first)), bool(options.get("alibi", False))
    multi, parallel = options.get("multi_query", True), bool(options.get("parallel_attn", True))
    given = options.get("num_kv_heads", options.get("n_head_kv", None))
    norms = options.get("num_ln_in_parallel_attn", None)
    apart = new and (2 if norms is None else norms) == 2
    bias = bool(options.get("bias", False))
    rotary = Rotary().read(options, values["d_model"] // values["num_heads"])
    return {
        **({"positions": "alibi", "alibi_positive": True, "alibi_scaled": True} if alibi else rotary),
        "num_kv_heads": (given or values["num_heads"]) if new or not multi else 1,
        "parallel": "separate" if apart else "shared" if parallel or new else "none",
        "attention_bias": bias, "attention_output_bias": bias, "ffn_bias": bias,
    }  # fmt: skip


def _falcon_back(c: DecoderConfig) -> Values:
    new = c.parallel == "separate" or c.num_kv_heads not in (1, c.num_heads)
    return {
        "alibi": c.positions == "alibi", "new_decoder_architecture": new, "num_kv_heads": c.num_kv_heads,
        "multi_query": c.num_kv_heads == 1, "parallel_attn": c.parallel != "none", "bias": c.attention_bias,
        "num_ln_in_parallel_attn": (2 if c.parallel == "separate" else 1) if new else None,
        **Rotary().write(c),
    }  # fmt: skip


FALCON = Architecture(
    name="falcon",
    model="FalconForCausalLM",
    prefix="transformer.h.{i}",
    top={"embedding": "transformer.word_embeddings", "norm": "transformer.ln_f", "output": "lm_head"},
    layer=_BLOOM_LAYER,
    keys=(
        *(Key("vocab_size", "vocab_size", 65024), Key("hidden_size|n_embed", "d_model", 4544)),
        *(Key("num_hidden_layers|n_layer", "num_layers", 32), Key("num_attention_heads|n_head", "num_heads", 71)),
        *(Key("ffn_hidden_size", "d_ff", None), Key("max_position_embeddings", "max_positions", 2048)),
        *(Key("layer_norm_epsilon", "norm_epsilon", 1e-5), activation("activation", "gelu")),
        Key("tie_word_embeddings", "tied_output", True),
    ),
    always={"positions": "rotary"},
    expect={"apply_residual_connection_post_layernorm": (False,)},
    ignored=(*IGNORED, "n_head_kv", "rotary", "ff_factor"),
    more=_falcon,
    back=_falcon_back,
    fused={"self_attention.query_key_value": Fused(QKV, grouped)},
    leftovers=BUFFERS,
)

_MPT_ATTENTION = {
    "attn_type": ("multihead_attention",), "clip_qkv": (None,), "prefix_lm": (False,), "qk_ln": (False,),
    "attn_uses_sequence_id": (False,), "alibi": (True,), "alibi_bias_max": (8,),
}  # fmt: skip


def _mpt(options: Options, values: Values) -> Values:
    given = options.get("attn_config", None) or {}
    for key, allowed in _MPT_ATTENTION.items():
        if given.get(key, allowed[0]) not in allowed:
            options.problem(f"attn_config.{key}: {given[key]!r} is not supported", expected=repr(allowed[0]))
    known = {*_MPT_ATTENTION, "softmax_scale", "attn_pdrop", "attn_impl"}
    options.problems += options.unknown({k: v for k, v in given.items() if k not in known}, "attn_config.")
    ratio = options.get("expansion_ratio", 4)
    return {"d_ff": int(ratio * values["d_model"]), "query_scale": given.get("softmax_scale")}


MPT = Architecture(
    name="mpt",
    model="MptForCausalLM",
    prefix="transformer.blocks.{i}",
    top={"embedding": "transformer.wte", "norm": "transformer.norm_f", "output": "lm_head"},
    layer={
        "attention_norm": "norm_1",
        "attention.output": "attn.out_proj",
        "ffn_norm": "norm_2",
        "ffn.up": "ffn.up_proj",
        "ffn.down": "ffn.down_proj",
    },
    keys=(
        *(Key("vocab_size", "vocab_size", 50368), Key("d_model|hidden_size", "d_model", 2048)),
        *(Key("n_layers|num_hidden_layers", "num_layers", 24), Key("n_heads|num_attention_heads", "num_heads", 16)),
        *(Key("max_seq_len", "max_positions", 2048), Key("layer_norm_epsilon", "norm_epsilon", 1e-5)),
        Key("tie_word_embeddings", "tied_output", True),
    ),
    always={
        "positions": "alibi", "activation": "gelu_erf", "norm_bias": False, "attention_bias": False,
        "attention_output_bias": False, "ffn_bias": False,
    },
    expect={
        "no_bias": (True,), "logit_scale": (None,), "norm_type": ("low_precision_layernorm",),
        "embedding_fraction": (1.0,),
    },
    ignored=(
        *IGNORED, "learned_pos_emb", "emb_pdrop", "init_device", "init_config", "tokenizer_name", "verbose",
        "resid_pdrop", "low_precision_layernorm",
    ),
    more=_mpt,
    back=lambda c: {"expansion_ratio": c.d_ff // c.d_model, "attn_config": {"softmax_scale": c.query_scale}},
    fused={"attn.Wqkv": Fused(QKV, joined)},
)  # fmt: skip

PHI = Architecture(
    name="phi",
    model="PhiForCausalLM",
    prefix="model.layers.{i}",
    top={"embedding": "model.embed_tokens", "norm": "model.final_layernorm", "output": "lm_head"},
    layer={
        "attention_norm": "input_layernorm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.dense",
        "ffn.up": "mlp.fc1",
        "ffn.down": "mlp.fc2",
    },
    keys=(
        *(Key("vocab_size", "vocab_size", 51200), Key("hidden_size", "d_model", 2048)),
        *(Key("num_hidden_layers", "num_layers", 24), Key("num_attention_heads", "num_heads", 32)),
        *(Key("num_key_value_heads", "num_kv_heads", None), Key("intermediate_size", "d_ff", 8192)),
        *(Key("max_position_embeddings", "max_positions", 2048), Key("layer_norm_eps", "norm_epsilon", 1e-5)),
        *(activation("hidden_act", "gelu_new", GELU_NEW), Key("tie_word_embeddings", "tied_output", False)),
    ),
    always={"positions": "rotary", "parallel": "shared", "output_bias": True},
    expect={"qk_layernorm": (False,)},
    ignored=IGNORED,
    rotary=Rotary(part="partial_rotary_factor", default_part=0.5),
    leftovers=BUFFERS,
)


PHI3 = Architecture(
    name="phi3",
    model="Phi3ForCausalLM",
    prefix="model.layers.{i}",
    top=LLAMA_TOP,
    layer={key: name for key, name in LLAMA_LAYER.items() if key not in (*QKV, "ffn.gate", "ffn.up")},
    keys=(
        *(k for k in llama_keys(32064, 3072, 32, 32, None, 8192, None, longest=4096, epsilon=1e-5)),
        *(activation("hidden_act", "silu"), Key("sliding_window", "sliding_window", None)),
        Key("original_max_position_embeddings", "original_max_positions", 4096),
    ),
    always=RMS,
    expect={"attention_bias": (False,), "mlp_bias": (False,), "full_attn_mod": (1,), "interpolate_factor": (1,)},
    ignored=IGNORED,
    rotary=Rotary(part="partial_rotary_factor"),
    fused={
        "self_attn.qkv_proj": Fused(QKV, joined),
        "mlp.gate_up_proj": Fused(("ffn.gate", "ffn.up"), gate_up),
    },
    leftovers=BUFFERS,
    packs=True,
)
