"""How EOLE spells language models: a directory of config.json, vocab.json and ``model.00.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from warmstart.checked import Invalid
from warmstart.errors import Problem, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.checks import not_allowed
from warmstart.models.decoder.config import DecoderConfig, RotaryScaling
from warmstart.models.decoder.dialects.onmt import Spelling, finish, read_config, rules_of
from warmstart.models.eole import ACTIVATIONS, ALLOWED, DISTANCES, EoleOptions, is_eole, special_tokens, tokens_of
from warmstart.models.family import Dialect
from warmstart.models.huggingface import folder_of
from warmstart.spec.mapping import Rule
from warmstart.vocabularies.load import load_vocabulary
from warmstart.vocabularies.subwords import SubwordVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

_POSITIONS = {
    "SinusoidalInterleaved": "learned", "SinusoidalConcat": "learned", "Rotary": "rotary", "Alibi": "alibi",
    "Relative": "relative",
}  # fmt: skip
_ALLOWED: Mapping[str, tuple[object, ...]] = {
    **ALLOWED,
    "encoder_type": ("transformer",),
    "decoder_type": ("transformer", "transformer_lm"),  # the second before 0.1
    "with_cross_attn": (False,),
    "LM_type": ("causal",),
    "layer_types": (None,),
    "global_head_dim": (None,),
    "global_heads_kv": (None,),
    "lambda_align": (0,),
    "generator_function": ("softmax",),
    "add_estimator": (False,),
    "max_relative_positions": (0,),  # how EOLE 0.0 named the types of positions
    "position_shift": (0, None),
}
# Sizes and biases, which the arrays say; what goes with an option that is refused; what is of training, or of parts
# that a language model does not have. Source: ``eole/config/models.py`` of 0.0.1 to 0.5.3.
_IGNORED = (
    "architecture", "encoder", "decoder", "embeddings", "hidden_size", "word_vec_size", "src_word_vec_size",
    "tgt_word_vec_size", "transformer_ff", "dim_per_head", "max_position_embeddings", "n_positions",
    "position_encoding", "interpolate_mode", "add_qkvbias", "add_key_bias", "add_final_linear_bias", "add_ffnbias",
    "generator_bias", "share_embeddings", "freeze_word_vecs_enc", "freeze_word_vecs_dec", "left_pad",
    "huggingface_model", "eole_version", "qk_norm_post_rope", "rotary_interleave", "rotary_theta", "rotary_dim",
    "num_experts_per_tok", "num_shared_experts", "shared_expert_gate", "first_k_dense_replace", "moe_transformer_ff",
    "moe_softmax_after", "moe_renormalize", "linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim",
    "linear_num_key_heads", "linear_num_value_heads", "aan_useffn", "alignment_layer", "alignment_heads",
    "full_context_alignment", "lambda_coverage", "global_attention", "global_attention_function", "input_feed",
    "estimator_type", "adapter_bias", "multimodal_projector_bias", "projector_activation_fn", "spatial_merge_size",
)  # fmt: skip
_USED = (
    "heads", "heads_kv", "head_dim", "layers", "norm_eps", "share_decoder_embeddings", "position_encoding_type",
    "rope_config", "sliding_window",
)  # fmt: skip
_KNOWN = {*_ALLOWED, *_USED, *_IGNORED}
_SCALINGS = {"llama3": "llama3", "gemma3": "linear"}
_ROPE: Mapping[str, tuple[object, ...]] = {
    "scaling_type": (None, *_SCALINGS), "xdrope_section": (None,), "interleave_local": (0,), "tmax_index": (0,),
    "rotary_dim_global": (0,), "partial_rotary_factor": (0,), "multidimensional_rope": (False,),
}  # fmt: skip
_WITH_SCALING = ("alpha", "scaling_factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_ROPE_KNOWN = (*_ROPE, *_WITH_SCALING, "rotary_interleave", "rotary_theta", "rotary_dim", "rotary_theta_local")

_L = "decoder.transformer_layers.{i}"
SPELLING = Spelling(
    framework="EOLE",
    architecture="eole",
    names={
        "embedding": ("tgt_emb.embeddings",),
        "positions": ("tgt_emb.pe.pe",),
        "norm": ("decoder.layer_norm",),
        "output": ("generator",),
        "layers.{i}.attention_norm": (f"{_L}.input_layernorm",),
        "layers.{i}.attention.query": (f"{_L}.self_attn.linear_query",),
        "layers.{i}.attention.key": (f"{_L}.self_attn.linear_keys",),
        "layers.{i}.attention.value": (f"{_L}.self_attn.linear_values",),
        "layers.{i}.attention.output": (f"{_L}.self_attn.final_linear",),
        "layers.{i}.attention.relative_keys": (f"{_L}.{DISTANCES}",),
        "layers.{i}.attention.relative_values": (),
        "layers.{i}.ffn_norm": (f"{_L}.post_attention_layernorm",),
        "layers.{i}.ffn.gate": (f"{_L}.mlp.gate_up_proj",),
        "layers.{i}.ffn.up": (f"{_L}.mlp.up_proj",),
        "layers.{i}.ffn.down": (f"{_L}.mlp.down_proj",),
    },
    layer=_L,
    gate=f"{_L}.mlp.gate_up_proj",
    whats={},
    relative_scaled=False,
    scalings=tuple(_SCALINGS.values()),
)


class EoleDialect(Dialect):
    """Read only. Weights [out, in]; a tied output is saved once."""

    name = "eole"

    def recognise(self, checkpoint: Checkpoint) -> bool:
        entries = checkpoint.entries
        alone = SPELLING.array("embedding") in entries and "src_emb.embeddings.weight" not in entries
        return alone and is_eole(checkpoint)

    def read_config(self, checkpoint: Checkpoint) -> DecoderConfig:
        options = EoleOptions(folder_of(checkpoint), _ALLOWED)
        problems, said, kind = options.problems, options.said, options.positions()
        problems += [
            Problem(f"{place}.{key}: {part[key]!r} is not an option that is known here")
            for place, part in options.parts.items()
            for key in part
            if place != "encoder" and key not in _KNOWN
        ]
        if options.parts["encoder"]:
            problems.append(Problem("config.json describes an encoder, and the file has none"))
        if kind not in _POSITIONS:
            expected = " or ".join(map(repr, _POSITIONS))
            problems.append(Problem(f"position_encoding_type: {kind!r} is not supported", expected=expected))
        activation = str(said("mlp_activation_fn", "relu"))
        rope = (said("rope_config", None) or {}) if kind == "Rotary" else {}
        if not isinstance(rope, Mapping):
            problems.append(Problem("rope_config is no part", found=repr(rope)))
            rope = {}
        problems += _rope_problems(rope)
        tied = SPELLING.array("output") not in checkpoint.entries
        if tied and not said("share_decoder_embeddings", False):
            problems.append(Problem(f"{SPELLING.array('output')} is missing, and share_decoder_embeddings is not set"))
        settings = read_config(
            SPELLING, checkpoint.entries,
            {
                "heads": said("heads", 8), "kv_heads": said("heads_kv", None), "head_dim": said("head_dim", None),
                "layers": said("layers", None), "gated": activation.startswith("gated-"), "tied": tied,
                "activation": ACTIVATIONS.get(activation),
                "norm": "rms" if said("layer_norm", "standard") == "rms" else "layer",
                "norm_epsilon": said("norm_eps", 1e-5), "positions": _POSITIONS.get(str(kind)),
                "distances": said("n_positions", None, "embeddings"),
                "sliding_window": said("sliding_window", 0) or None, "rotary_dim": rope.get("rotary_dim", 0),
                "rotary_base": rope.get("rotary_theta", 10000), "rotary_pairs": rope.get("rotary_interleave", True),
                **_scaling(rope, problems),
            },
            problems,
        )  # fmt: skip
        return finish(SPELLING, settings, problems, options.where)

    def rules(self, config: DecoderConfig) -> list[Rule]:
        return list(rules_of(SPELLING, config))

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        if files:
            return {"text": load_vocabulary(Path(files[-1]))}
        folder = folder_of(checkpoint)
        return {"text": SubwordVocabulary(tokens_of(folder, "tgt"), special_tokens(folder))}


def _rope_problems(rope: Mapping[str, Any]) -> list[Problem]:
    """What ``rope_config`` says beyond one rotation of all layers."""
    unknown = sorted(set(rope) - set(_ROPE_KNOWN))
    wrong = not_allowed(rope, _ROPE, "rope_config.")
    return wrong + [Problem(f"rope_config.{key} is not an option that is known here") for key in unknown]


def _scaling(rope: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """How ``rope_config`` stretches angles. Without ``scaling_type`` what goes with it says nothing."""
    kind = _SCALINGS.get(str(rope.get("scaling_type")))
    if kind is None:
        return {"rotary_scaling": None, "original_max_positions": None}
    given = {"kind": kind, "factor": rope.get("scaling_factor", 8.0)}
    original = None
    if kind == "llama3":
        given["low_frequency_factor"] = rope.get("low_freq_factor", 1.0)
        given["high_frequency_factor"] = rope.get("high_freq_factor", 4.0)
        original = rope.get("original_max_position_embeddings", 8192)
    try:
        return {"rotary_scaling": RotaryScaling.model_validate(given), "original_max_positions": original}
    except Invalid as error:
        problems += validation_problems(error, "rope_config: ")
        return {}
