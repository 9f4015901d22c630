"""How CTranslate2 spells Whisper (``WhisperSpec``, revision 3)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from warmstart.checked import Invalid
from warmstart.errors import DialectError, Problem, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.family import Facts
from warmstart.models.model_bin import ModelBin, Upgraded, json_file
from warmstart.models.model_bin_rules import gamma_beta, layers_of, linear, read_table
from warmstart.models.pretrained import SIDE
from warmstart.models.whisper.config import WhisperConfig
from warmstart.spec.fused import Filled
from warmstart.spec.generated import constant
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Split
from warmstart.vocabularies.vocabulary import Vocabulary

_GELU = 3
_FIXED: dict[str, np.generic] = {
    "decoder/activation": np.int8(_GELU), "decoder/alibi": np.int8(0),
    "decoder/alibi_use_positive_positions": np.int8(0), "decoder/alignment_heads": np.int16(1),
    "decoder/alignment_layer": np.int16(-1), "decoder/pre_norm": np.int8(1), "decoder/scale_alibi": np.int8(0),
    "decoder/scale_embeddings": np.int8(0), "decoder/start_from_zero_embedding": np.int8(0),
}  # fmt: skip


class CTranslate2Dialect(ModelBin):
    """Weights [out, in], Q‖K‖V joined; keys get a bias of zeros."""

    specifications = ("WhisperSpec",)

    def specification(self, config: WhisperConfig) -> tuple[str, int]:
        return "WhisperSpec", 3

    def rules(self, config: WhisperConfig) -> list[Rule]:
        c = config
        numbers = {**_FIXED, "encoder/num_heads": np.int16(c.encoder_heads)}
        numbers["decoder/num_heads"] = np.int16(c.decoder_heads)
        rules = [rule(name, (), constant(value)) for name, value in numbers.items()]
        rules += [
            *linear("encoder/conv1", "encoder.conv1"),
            *linear("encoder/conv2", "encoder.conv2"),
            rule("decoder/embeddings/weight", "decoder.embedding.weight"),
            rule("decoder/projection/weight", "decoder.output.weight"),
        ]
        for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
            rules.append(rule(f"{side}/position_encodings/encodings", f"{side}.positions.weight"))
            rules += gamma_beta(f"{side}/layer_norm", f"{side}.norm")
            rules += _layer(side, {"i": layers})
        return rules

    def files(self, config: WhisperConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts) -> Mapping[str, bytes]:
        keys = ("suppress_ids", "suppress_ids_begin", "lang_ids", "alignment_heads")
        table = json.dumps(list(vocabularies[SIDE].tokens), indent=2).encode("ascii")
        content = config.model_dump(mode="json", include=set(keys))
        return {"config.json": json_file(content), "vocabulary.json": table}

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        return read_table(checkpoint, files, {})

    def config_of(self, stored: Upgraded) -> WhisperConfig:
        return _read(stored)


def _layer(side: str, each: Mapping[str, int]) -> list[Rule]:
    theirs, ours = f"{side}/layer_{{i}}", f"{side}.layers.{{i}}"
    own, cross = f"{ours}.self_attention", f"{ours}.cross_attention"
    qkv = [f"{own}.{part}.weight" for part in ("query", "key", "value")]
    rules = [
        rule(f"{theirs}/self_attention/linear_0/weight", qkv, Split(3), each=each),
        rule(f"{theirs}/self_attention/linear_0/bias", [f"{own}.query.bias", f"{own}.value.bias"],
             Filled(3, (0, 2)), each=each),
        *linear(f"{theirs}/self_attention/linear_1", f"{own}.output", each),
        *gamma_beta(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attention_norm", each),
        *linear(f"{theirs}/ffn/linear_0", f"{ours}.ffn.up", each),
        *linear(f"{theirs}/ffn/linear_1", f"{ours}.ffn.down", each),
        *gamma_beta(f"{theirs}/ffn/layer_norm", f"{ours}.ffn_norm", each),
    ]  # fmt: skip
    if side == "decoder":
        kv = [f"{cross}.key.weight", f"{cross}.value.weight"]
        rules += [
            *linear(f"{theirs}/attention/linear_0", f"{cross}.query", each),
            rule(f"{theirs}/attention/linear_1/weight", kv, Split(2), each=each),
            rule(f"{theirs}/attention/linear_1/bias", f"{cross}.value.bias", Filled(2, (1,)), each=each),
            *linear(f"{theirs}/attention/linear_2", f"{cross}.output", each),
            *gamma_beta(f"{theirs}/attention/layer_norm", f"{ours}.cross_attention_norm", each),
        ]
    return rules


def _read(stored: Upgraded) -> WhisperConfig:
    """The configuration from the attributes, the shapes of the arrays and config.json."""
    entries, problems = stored.entries, list[Problem]()
    sides = ("encoder", "decoder")
    needed = ["encoder/conv1/weight", "decoder/embeddings/weight", "decoder/projection/weight"]
    needed += [f"{side}/{part}" for side in sides for part in ("layer_0/ffn/linear_0/weight",)]
    needed += [f"{side}/position_encodings/encodings" for side in sides]
    absent = [name for name in needed if name not in entries]
    if absent:
        problems.append(Problem(f"arrays are missing: {', '.join(absent)}"))
    for name, value in _FIXED.items():
        if stored.number(name) != value:
            problems.append(Problem(f"{name}: {stored.number(name)} is not supported"))
    layers = {side: layers_of(stored, side, problems) for side in sides}
    problems += _biases_of_keys(stored, layers)
    if problems:
        raise DialectError("this CTranslate2 model is not supported", where=stored.path, problems=problems)
    said = stored.metadata.get("config") or {}
    values: dict[str, Any] = {
        "vocab_size": entries["decoder/embeddings/weight"].shape[0],
        "num_mel_bins": entries["encoder/conv1/weight"].shape[1],
        "d_model": entries["decoder/embeddings/weight"].shape[-1],
        "max_source_positions": entries["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": entries["decoder/position_encodings/encodings"].shape[0],
        "tied_output": stored.ties.get("decoder/projection/weight") == "decoder/embeddings/weight",
        "suppress_ids": said.get("suppress_ids"),
        "suppress_ids_begin": said.get("suppress_ids_begin"),
        "lang_ids": said.get("lang_ids") or (),
        "alignment_heads": said.get("alignment_heads") or (),
    }
    for side in sides:
        values[f"{side}_layers"] = layers[side]
        values[f"{side}_heads"] = stored.number(f"{side}/num_heads")
        values[f"{side}_d_ff"] = entries[f"{side}/layer_0/ffn/linear_0/weight"].shape[0]
    try:
        return WhisperConfig.model_validate(values)
    except Invalid as error:
        problems = validation_problems(error)
        raise DialectError("this CTranslate2 model is not supported", where=stored.path, problems=problems) from None


def _biases_of_keys(stored: Upgraded, layers: Mapping[str, int]) -> list[Problem]:
    """Keys have no bias in this family: what CTranslate2 stores for it must be zeros."""
    problems = []
    for side, count in layers.items():
        for i in range(count):
            parts = {"self_attention/linear_0": (3, 1), **({"attention/linear_1": (2, 0)} if side == "decoder" else {})}
            for part, (of, which) in parts.items():
                name = f"{side}/layer_{i}/{part}/bias"
                bias = stored.read(name) if name in stored.entries else np.zeros(of, np.float32)
                if len(bias) % of == 0 and np.any(np.split(bias, of)[which]):
                    problems.append(Problem(f"{name} has a bias for keys", expected="zeros"))
    return problems
