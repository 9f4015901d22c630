"""How CTranslate2 spells wav2vec 2.0 (``Wav2Vec2Spec``, revision 3)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from warmstart.checked import Invalid
from warmstart.errors import DialectError, Problem, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.family import Facts
from warmstart.models.model_bin import ModelBin, Upgraded
from warmstart.models.model_bin_rules import gamma_beta, layers_of, linear, read_table
from warmstart.models.pretrained import SIDE
from warmstart.models.wav2vec2.config import Wav2Vec2Config
from warmstart.spec.fused import WeightNorm
from warmstart.spec.generated import constant
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Split
from warmstart.vocabularies.vocabulary import Vocabulary

_E, _L = "encoder", "encoder/layer_{i}"


class CTranslate2Dialect(ModelBin):
    """Weights [out, in], Q‖K‖V joined; the weight of the positions' convolution multiplied out."""

    specifications = ("Wav2Vec2Spec",)

    def specification(self, config: Wav2Vec2Config) -> tuple[str, int]:
        return "Wav2Vec2Spec", 3

    def rules(self, config: Wav2Vec2Config) -> list[Rule]:
        each = {"i": config.num_layers}
        positions = f"{_E}/pos_conv_embed/conv"
        rules = [
            rule("vocab_size", (), constant(np.int16(config.vocab_size))),
            rule(f"{_E}/num_heads", (), constant(np.int16(config.num_heads))),
            *linear(f"{_E}/fp_projection", "projection"),
            *gamma_beta(f"{_E}/fp_layer_norm", "projection_norm"),
            rule(f"{positions}/weight", ("positions.scale", "positions.direction"), WeightNorm()),
            rule(f"{positions}/bias", "positions.bias"),
            *gamma_beta(f"{_E}/layer_norm", "norm"),
            *linear(f"{_L}/self_attention/linear_1", "layers.{i}.self_attention.output", each),
            *gamma_beta(f"{_L}/self_attention/layer_norm", "layers.{i}.self_attention_norm", each),
            *linear(f"{_L}/ffn/linear_0", "layers.{i}.ffn.up", each),
            *linear(f"{_L}/ffn/linear_1", "layers.{i}.ffn.down", each),
            *gamma_beta(f"{_L}/ffn/layer_norm", "layers.{i}.ffn_norm", each),
        ]
        for what in ("weight", "bias"):
            qkv = [f"layers.{{i}}.self_attention.{p}.{what}" for p in ("query", "key", "value")]
            rules.append(rule(f"{_L}/self_attention/linear_0/{what}", qkv, Split(3), each=each))
        for k in range(len(config.conv_dim)):
            theirs = f"{_E}/feat_layer_{k - 1}" if k else f"{_E}/feat_layer0"
            rules += linear(f"{theirs}/conv", f"features.{k}.conv")
            rules += gamma_beta(f"{theirs}/layer_norm", f"features.{k}.norm")
        return rules + (linear(f"{_E}/lm_head", "output") if config.head else [])

    def approximations(self, config: Wav2Vec2Config) -> Mapping[str, str]:
        return {
            "positions.scale": "comes back as the norms of what it was multiplied into",
            "positions.direction": "comes back multiplied by its scale",
        }

    def files(
        self, config: Wav2Vec2Config, vocabularies: Mapping[str, Vocabulary], facts: Facts
    ) -> Mapping[str, bytes]:
        table = json.dumps(list(vocabularies[SIDE].tokens), indent=2).encode("ascii")
        return {"config.json": b"{}\n", "vocabulary.json": table}

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        return read_table(checkpoint, files, {})

    def config_of(self, stored: Upgraded) -> Wav2Vec2Config:
        return _read(stored)


def _read(stored: Upgraded) -> Wav2Vec2Config:
    """The configuration from the attributes and the shapes of the arrays."""
    entries, problems = stored.entries, list[Problem]()
    needed = (f"{_E}/fp_projection/weight", f"{_E}/layer_0/ffn/linear_0/weight", f"{_E}/feat_layer0/conv/weight")
    absent = [name for name in (*needed, "vocab_size") if name not in entries]
    if absent:
        problems.append(Problem(f"arrays are missing: {', '.join(absent)}", expected="a model of revision 3"))
    layers, convolutions = layers_of(stored, _E, problems), layers_of(stored, _E, problems, "feat_layer")
    names = [f"{_E}/feat_layer0/conv/weight", *(f"{_E}/feat_layer_{k}/conv/weight" for k in range(convolutions))]
    problems += [Problem(f"{name} is missing") for name in names[1:] if name not in entries]
    if problems:
        raise DialectError("this CTranslate2 model is not supported", where=stored.path, problems=problems)
    values: dict[str, Any] = {
        "vocab_size": stored.attribute("vocab_size"),
        "d_model": entries[needed[0]].shape[0],
        "num_heads": stored.number(f"{_E}/num_heads"),
        "num_layers": layers,
        "d_ff": entries[needed[1]].shape[0],
        "conv_dim": [entries[name].shape[0] for name in names],
        "conv_kernel": [entries[name].shape[-1] for name in names],
        "head": f"{_E}/lm_head/weight" in entries,
    }
    try:
        return Wav2Vec2Config.model_validate(values)
    except Invalid as error:
        problems = validation_problems(error)
        raise DialectError("this CTranslate2 model is not supported", where=stored.path, problems=problems) from None
