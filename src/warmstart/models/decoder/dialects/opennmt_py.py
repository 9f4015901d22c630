"""How OpenNMT-py spells language models (``transformer_lm``), in its ``.pt`` files of versions 2 and 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from warmstart.errors import Problem
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.checks import not_allowed
from warmstart.models.decoder.config import DecoderConfig
from warmstart.models.decoder.dialects.onmt import Spelling, finish, read_config, rules_of
from warmstart.models.opennmt_py import (
    ACTIVATIONS,
    ALLOWED,
    EPSILON,
    OpenNMTPy,
    layers_said,
    options_of,
    positions_of,
    tables_of,
)
from warmstart.spec.mapping import Rule
from warmstart.vocabularies.load import load_vocabulary
from warmstart.vocabularies.subwords import SubwordVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

_KIND = "transformer_lm"
_ALLOWED: Mapping[str, tuple[object, ...]] = {
    **ALLOWED,
    "encoder_type": (_KIND,),
    "decoder_type": (_KIND,),
    "model_task": ("lm", None),
    "lambda_align": (0, None),
}
_SPECIAL = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<blank>"}

_L = "model.decoder.transformer_layers.{i}"
SPELLING = Spelling(
    framework="OpenNMT-py",
    architecture="opennmt-py",
    names={
        "embedding": ("model.decoder.embeddings.make_embedding.emb_luts.0",),
        "positions": ("model.decoder.embeddings.make_embedding.pe.pe",),
        "norm": ("model.decoder.layer_norm",),
        "output": ("generator", "generator.0"),
        "layers.{i}.attention_norm": (f"{_L}.layer_norm_1",),
        "layers.{i}.attention.query": (f"{_L}.self_attn.linear_query",),
        "layers.{i}.attention.key": (f"{_L}.self_attn.linear_keys",),
        "layers.{i}.attention.value": (f"{_L}.self_attn.linear_values",),
        "layers.{i}.attention.output": (f"{_L}.self_attn.final_linear",),
        "layers.{i}.attention.relative_keys": (f"{_L}.self_attn.relative_positions_embeddings",),
        "layers.{i}.attention.relative_values": (),
        "layers.{i}.ffn_norm": (f"{_L}.feed_forward.layer_norm",),
        "layers.{i}.ffn.gate": (f"{_L}.feed_forward.w_1",),
        "layers.{i}.ffn.up": (f"{_L}.feed_forward.w_3",),
        "layers.{i}.ffn.down": (f"{_L}.feed_forward.w_2",),
    },
    layer=_L,
    gate=f"{_L}.feed_forward.w_1",
    whats={"weight": ("a_2",), "bias": ("b_2",)},  # of OpenNMT-py's own class of norms
    relative_scaled=True,
    scalings=(),
)


class OpenNMTPyDialect(OpenNMTPy):
    """Read only. Weights [out, in]; positions as a table in the file, rotated, of ALiBi, or as vectors of distances."""

    def recognise(self, checkpoint: Checkpoint) -> bool:
        return options_of(checkpoint).get("decoder_type") == _KIND and "vocab" in checkpoint.metadata

    def read_config(self, checkpoint: Checkpoint) -> DecoderConfig:
        opt = options_of(checkpoint)
        problems = not_allowed(opt, _ALLOWED)
        positions = positions_of(opt, ("learned", "relative", "rotary", "alibi"), problems)
        activation = str(opt.get("pos_ffn_activation_fn", "relu"))
        kv_heads = opt.get("num_kv", 0)
        if opt.get("multiquery", False):
            if kv_heads not in (0, 1):
                problems.append(Problem(f"multiquery is set and num_kv is {kv_heads}"))
            kv_heads = 1
        settings = read_config(
            SPELLING, checkpoint.entries,
            {
                "heads": opt.get("heads", 8), "kv_heads": kv_heads, "head_dim": None,
                "layers": layers_said(opt)["decoder"], "gated": activation == "silu",
                "tied": bool(opt.get("share_decoder_embeddings")), "activation": ACTIVATIONS.get(activation),
                "norm": "rms" if opt.get("layer_norm") == "rms" else "layer",
                "norm_epsilon": opt.get("norm_eps", EPSILON), "positions": positions,
                "distances": opt.get("max_relative_positions"),
                "sliding_window": opt.get("sliding_window", 0) or None,
                "rotary_dim": opt.get("rotary_dim", 0), "rotary_base": opt.get("rotary_theta", 10000),
                "rotary_pairs": opt.get("rotary_interleave", True),
            },
            problems,
        )  # fmt: skip
        return finish(SPELLING, settings, problems, checkpoint.path)

    def rules(self, config: DecoderConfig) -> list[Rule]:
        return list(rules_of(SPELLING, config))

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        if files:
            return {"text": load_vocabulary(Path(files[-1]))}
        tokens = tables_of(checkpoint.metadata["vocab"], checkpoint.path)["target"]
        return {"text": SubwordVocabulary(tokens, _SPECIAL)}
