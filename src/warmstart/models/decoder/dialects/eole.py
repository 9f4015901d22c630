"""How EOLE spells language models: a directory of config.json, vocab.json and ``model.00.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from warmstart.errors import Problem
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.decoder.config import DecoderConfig
from warmstart.models.decoder.dialects.onmt import Spelling, finish, read_config, rules_of
from warmstart.models.family import Dialect
from warmstart.models.huggingface import CONFIG, folder_of
from warmstart.models.transformer.dialects.eole import (
    ACTIVATIONS,
    ALLOWED,
    VOCABULARY,
    EoleOptions,
    special_tokens,
    tokens_of,
)
from warmstart.spec.mapping import Rule
from warmstart.vocabularies.load import load_vocabulary
from warmstart.vocabularies.subwords import SubwordVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

_POSITIONS = {
    "SinusoidalInterleaved": "learned", "SinusoidalConcat": "learned", "Rotary": "rotary", "Alibi": "alibi",
}  # fmt: skip
_READ = ("position_encoding_type", "heads_kv", "head_dim", "sliding_window")
_ALLOWED: Mapping[str, tuple[object, ...]] = {
    **{key: values for key, values in ALLOWED.items() if key not in _READ},
    "decoder_type": ("transformer", "transformer_lm"),  # the second before 0.1
    "with_cross_attn": (False,),
    "LM_type": ("causal",),
    "layer_types": (None,),
    "global_head_dim": (None,),
    "global_heads_kv": (None,),
    "lambda_align": (0,),
}
_ROPE: Mapping[str, tuple[object, ...]] = {
    "scaling_type": (None,), "xdrope_section": (None,), "interleave_local": (0,), "tmax_index": (0,),
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
        "layers.{i}.ffn_norm": (f"{_L}.post_attention_layernorm",),
        "layers.{i}.ffn.gate": (f"{_L}.mlp.gate_up_proj",),
        "layers.{i}.ffn.up": (f"{_L}.mlp.up_proj",),
        "layers.{i}.ffn.down": (f"{_L}.mlp.down_proj",),
    },
    layer=_L,
    gate=f"{_L}.mlp.gate_up_proj",
    whats={},
)


class EoleDialect(Dialect):
    """Read only. Weights [out, in]; a tied output is saved once."""

    name = "eole"

    def recognise(self, checkpoint: Checkpoint) -> bool:
        folder, entries = folder_of(checkpoint), checkpoint.entries
        beside = all((folder / name).is_file() for name in (CONFIG, VOCABULARY))
        alone = SPELLING.array("embedding") in entries and "src_emb.embeddings.weight" not in entries
        return checkpoint.format == "safetensors" and beside and alone

    def read_config(self, checkpoint: Checkpoint) -> DecoderConfig:
        options = EoleOptions(folder_of(checkpoint), _ALLOWED)
        problems, said, kind = options.problems, options.said, options.positions()
        if options.parts["encoder"]:
            problems.append(Problem("config.json describes an encoder, and the file has none"))
        if kind not in _POSITIONS:
            expected = " or ".join(map(repr, _POSITIONS))
            problems.append(Problem(f"position_encoding_type: {kind!r} is not supported", expected=expected))
        activation = said("mlp_activation_fn", "relu")
        if activation not in ACTIVATIONS:
            problems.append(Problem(f"mlp_activation_fn: {activation!r} is not supported"))
        rope = (said("rope_config", None) or {}) if kind == "Rotary" else {}
        problems += _rope_problems(rope)
        tied = SPELLING.array("output") not in checkpoint.entries
        if tied and not said("share_decoder_embeddings", False):
            problems.append(Problem(f"{SPELLING.array('output')} is missing, and share_decoder_embeddings is not set"))
        settings = read_config(
            SPELLING, checkpoint.entries,
            {
                "heads": said("heads", 8), "kv_heads": said("heads_kv", None), "head_dim": said("head_dim", None),
                "layers": said("layers", None), "gated": str(activation).startswith("gated-"), "tied": tied,
                "activation": ACTIVATIONS.get(str(activation)),
                "norm": "rms" if said("layer_norm", "standard") == "rms" else "layer",
                "norm_epsilon": said("norm_eps", 1e-5), "positions": _POSITIONS.get(str(kind)),
                "sliding_window": said("sliding_window", 0) or None, "rotary_dim": rope.get("rotary_dim", 0),
                "rotary_base": rope.get("rotary_theta", 10000), "rotary_pairs": rope.get("rotary_interleave", True),
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
    wrong = [
        Problem(f"rope_config.{key}: {rope[key]!r} is not supported", expected=" or ".join(map(repr, values)))
        for key, values in _ROPE.items()
        if key in rope and rope[key] not in values
    ]
    unknown = sorted(set(rope) - set(_ROPE_KNOWN))
    return wrong + [Problem(f"rope_config.{key} is not an option that is known here") for key in unknown]
