"""How CTranslate2 spells wav2vec2-BERT (``Wav2Vec2BertSpec``, revision 1)."""

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
from warmstart.models.wav2vec2_bert.config import Wav2Vec2BertConfig
from warmstart.spec.generated import constant
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Split
from warmstart.vocabularies.vocabulary import Vocabulary

_E, _L, _A = "encoder", "encoder/encoder_layers_{i}", "encoder/adapter_layers_{i}"
_KEYS = "enc_attn/relative_asymmetric_position_keys"

# What the engine computes whatever the arrays say (CTranslate2 4.8.1, src/layers/wav2vec2bert.cc): it stores none of
# these, and has a layer of adapters at least.
ENGINE = {"d_model": 1024, "num_heads": 16, "conv_kernel": 31, "adapter_kernel": 3}

_NORMS = {
    "enc_ffn1_layer_norm": "ffn1_norm", "enc_attn_layer_norm": "self_attention_norm",
    "enc_conv_layer_norm": "convolution.norm", "enc_conv_depthwise_layer_norm": "convolution.depthwise_norm",
    "enc_ffn2_layer_norm": "ffn2_norm", "enc_final_layer_norm": "norm",
}  # fmt: skip
_LINEARS = {
    "enc_ffn1/linear_0": "ffn1.up", "enc_ffn1/linear_1": "ffn1.down", "enc_ffn2/linear_0": "ffn2.up",
    "enc_ffn2/linear_1": "ffn2.down", "enc_attn/linear_1": "self_attention.output",
}  # fmt: skip
_CONVOLUTIONS = {
    "enc_conv_pointwise_conv1": "convolution.expand", "enc_conv_depthwise_conv": "convolution.depthwise",
    "enc_conv_pointwise_conv2": "convolution.project",
}  # fmt: skip
_ADAPTER_NORMS = {
    "adpt_residual_layer_norm": "residual_norm", "adpt_attn_layer_norm": "self_attention_norm",
    "adpt_ffn_layer_norm": "ffn_norm",
}  # fmt: skip
_ADAPTER_LINEARS = {
    "adpt_residual_conv": "residual_convolution", "adpt_attn_conv": "self_attention_convolution",
    "adpt_attn_layer/linear_1": "self_attention.output", "adpt_ffn/linear_0": "ffn.up", "adpt_ffn/linear_1": "ffn.down",
}  # fmt: skip


class CTranslate2Dialect(ModelBin):
    """Weights [out, in], Q‖K‖V joined."""

    specifications = ("Wav2Vec2BertSpec",)
    says_heads = False

    def specification(self, config: Wav2Vec2BertConfig) -> tuple[str, int]:
        return "Wav2Vec2BertSpec", 1

    def rules(self, config: Wav2Vec2BertConfig) -> list[Rule]:
        _refuse(config)
        layers, adapters = {"i": config.num_layers}, {"i": config.num_adapter_layers}
        rules = [
            rule("vocab_size", (), constant(np.int16(config.vocab_size))),
            *linear(f"{_E}/fp_projection", "projection"),
            *gamma_beta(f"{_E}/fp_layer_norm", "projection_norm"),
            rule(f"{_L}/{_KEYS}", "layers.{i}.self_attention.distances.weight", each=layers),
        ]
        for side, count in (("left", config.left_positions), ("right", config.right_positions)):
            number = constant(np.int32(count))
            rules.append(rule(f"{_L}/enc_attn/relative_{side}_max_position", (), number, each=layers))
        for theirs, ours in _NORMS.items():
            rules += gamma_beta(f"{_L}/{theirs}", f"layers.{{i}}.{ours}", layers)
        for theirs, ours in _LINEARS.items():
            rules += linear(f"{_L}/{theirs}", f"layers.{{i}}.{ours}", layers)
        for theirs, ours in _CONVOLUTIONS.items():
            rules.append(rule(f"{_L}/{theirs}/weight", f"layers.{{i}}.{ours}.weight", each=layers))
        for theirs, ours in _ADAPTER_NORMS.items():
            rules += gamma_beta(f"{_A}/{theirs}", f"adapters.{{i}}.{ours}", adapters)
        for theirs, ours in _ADAPTER_LINEARS.items():
            rules += linear(f"{_A}/{theirs}", f"adapters.{{i}}.{ours}", adapters)
        for what in ("weight", "bias"):
            parts = [f"self_attention.{p}.{what}" for p in ("query", "key", "value")]
            for theirs, ours, each in (
                (f"{_L}/enc_attn", "layers.{i}", layers),
                (f"{_A}/adpt_attn_layer", "adapters.{i}", adapters),
            ):
                rules.append(rule(f"{theirs}/linear_0/{what}", [f"{ours}.{p}" for p in parts], Split(3), each=each))
        return rules + (linear(f"{_E}/lm_head", "output") if config.head else [])

    def approximations(self, config: Wav2Vec2BertConfig) -> Mapping[str, str]:
        return {
            "adapters.ffn": "CTranslate2 (up to 4.8.5, layers/wav2vec2bert.cc) computes it, and then adds what it was "
            "computed from instead: outputs differ from transformers'"
        }

    def files(
        self, config: Wav2Vec2BertConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts
    ) -> Mapping[str, bytes]:
        table = json.dumps(list(vocabularies[SIDE].tokens), indent=2).encode("ascii")
        return {"config.json": b"{}\n", "vocabulary.json": table}

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        return read_table(checkpoint, files, {})

    def config_of(self, stored: Upgraded) -> Wav2Vec2BertConfig:
        return _read(stored)


def _refuse(config: Wav2Vec2BertConfig) -> None:
    problems = [
        Problem(f"{key} is {getattr(config, key)}", expected=str(value), found=str(getattr(config, key)))
        for key, value in ENGINE.items()
        if getattr(config, key) != value
    ]
    if not config.num_adapter_layers:
        problems.append(Problem("the model has no adapters", expected="one layer at least (add_adapter)"))
    if problems:
        raise DialectError("CTranslate2 computes another wav2vec2-BERT than this one", problems=problems)


def _read(stored: Upgraded) -> Wav2Vec2BertConfig:
    """The configuration from the attributes and the shapes of the arrays."""
    entries, problems = stored.entries, list[Problem]()
    first = _L.format(i=0)
    ffn, keys = f"{first}/enc_ffn1/linear_0/weight", f"{first}/{_KEYS}"
    convolution, adapter = f"{first}/enc_conv_depthwise_conv/weight", f"{_A.format(i=0)}/adpt_residual_conv/weight"
    needed = (f"{_E}/fp_projection/weight", ffn, keys, convolution, adapter, "vocab_size")
    absent = [name for name in needed if name not in entries]
    if absent:
        problems.append(Problem(f"arrays are missing: {', '.join(absent)}"))
    layers = layers_of(stored, _E, problems, "encoder_layers")
    adapters = layers_of(stored, _E, problems, "adapter_layers")
    if problems:
        raise DialectError("this CTranslate2 model is not supported", where=stored.path, problems=problems)
    width, inputs = entries[needed[0]].shape
    values: dict[str, Any] = {
        "vocab_size": stored.attribute("vocab_size"),
        "input_size": inputs,
        "d_model": width,
        "num_heads": width // entries[keys].shape[-1],
        "num_layers": layers,
        "d_ff": entries[ffn].shape[0],
        "conv_kernel": entries[convolution].shape[-1],
        "left_positions": stored.attribute(f"{first}/enc_attn/relative_left_max_position"),
        "right_positions": stored.attribute(f"{first}/enc_attn/relative_right_max_position"),
        "num_adapter_layers": adapters,
        "adapter_kernel": entries[adapter].shape[-1],
        "head": f"{_E}/lm_head/weight" in entries,
    }
    try:
        return Wav2Vec2BertConfig.model_validate(values)
    except Invalid as error:
        problems = validation_problems(error)
        raise DialectError("this CTranslate2 model is not supported", where=stored.path, problems=problems) from None
