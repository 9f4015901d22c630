"""How CTranslate2 spells the encoder-only Transformer (``TransformerEncoderSpec``, revision 1)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from warmstart.checked import Invalid
from warmstart.errors import DialectError, Problem, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.encoder.config import EncoderConfig
from warmstart.models.family import Facts
from warmstart.models.model_bin import ModelBin, Upgraded, json_file
from warmstart.models.model_bin_beside import manifest_config
from warmstart.models.model_bin_rules import gamma_beta, layers_of, read_table
from warmstart.models.pretrained import SIDE
from warmstart.spec.generated import constant
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Split
from warmstart.vocabularies.vocabulary import Vocabulary

ACTIVATIONS = {"relu": 0, "gelu_tanh": 1, "swish": 2, "gelu_erf": 3, "gelu": 4}
_TANH = 5
_E, _L = "encoder", "encoder/layer_{i}"


class CTranslate2Dialect(ModelBin):
    """Weights [out, in], Q‖K‖V joined."""

    specifications = ("TransformerEncoderSpec",)

    def specification(self, config: EncoderConfig) -> tuple[str, int]:
        return "TransformerEncoderSpec", 1

    def rules(self, config: EncoderConfig) -> list[Rule]:
        each = {"i": config.num_layers}
        rules = [rule(name, (), constant(value)) for name, value in _attributes(config).items()]
        rules += [
            rule(f"{_E}/embeddings_0/weight", "embedding.weight"),
            rule(f"{_E}/position_encodings/encodings", "positions.weight"),
            *gamma_beta(f"{_E}/layernorm_embedding", "embedding_norm"),
            *gamma_beta(f"{_L}/self_attention/layer_norm", "layers.{i}.self_attention_norm", each),
            *gamma_beta(f"{_L}/ffn/layer_norm", "layers.{i}.ffn_norm", each),
        ]
        if config.token_types:
            rules.append(rule(f"{_E}/embeddings_1/weight", "token_types.weight"))
        for what in ("weight", "bias"):
            qkv = [f"layers.{{i}}.self_attention.{p}.{what}" for p in ("query", "key", "value")]
            rules += [
                rule(f"{_L}/self_attention/linear_0/{what}", qkv, Split(3), each=each),
                rule(f"{_L}/self_attention/linear_1/{what}", f"layers.{{i}}.self_attention.output.{what}", each=each),
                rule(f"{_L}/ffn/linear_0/{what}", f"layers.{{i}}.ffn.up.{what}", each=each),
                rule(f"{_L}/ffn/linear_1/{what}", f"layers.{{i}}.ffn.down.{what}", each=each),
            ]
            if config.pooler:
                rules.append(rule(f"pooler_dense/{what}", f"pooler.{what}"))
        return rules

    def files(self, config: EncoderConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts) -> Mapping[str, bytes]:
        vocabulary = vocabularies[SIDE]
        content = {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "layer_norm_epsilon": config.layer_norm_epsilon,
            "multi_query_attention": False,
            "unk_token": "<unk>" if vocabulary.unk_id is None else vocabulary.tokens[vocabulary.unk_id],
        }
        table = json.dumps(list(vocabulary.tokens), indent=2).encode("ascii")
        return {"config.json": json_file(content), "vocabulary.json": table}

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        return read_table(checkpoint, files, {"unk": "unk_token"})

    def config_of(self, stored: Upgraded) -> EncoderConfig:
        found = _read(stored)
        kept = manifest_config(stored.path, "encoder", EncoderConfig)
        free = {"architecture": "bert", "position_offset": 0, "dropout": 0.1, "attention_dropout": 0.1}
        if kept is not None and kept.model_copy(update=free) == found.model_copy(update=free):
            return kept
        return found


def _attributes(c: EncoderConfig) -> dict[str, np.generic]:
    pooler = {"pooler_activation": np.int8(_TANH)} if c.pooler else {}
    return {
        f"{_E}/activation": np.int8(ACTIVATIONS[c.activation]),
        f"{_E}/embeddings_merge": np.int8(bool(c.token_types)),
        f"{_E}/multi_query_attention": np.int8(0),
        f"{_E}/num_heads": np.int16(c.num_heads),
        f"{_E}/pre_norm": np.int8(0),
        f"{_E}/scale_embeddings": np.int8(0),
        **pooler,
    }


def _read(stored: Upgraded) -> EncoderConfig:
    """The configuration from the attributes, the shapes of the arrays and config.json."""
    entries, problems = stored.entries, list[Problem]()

    def expect(holds: bool, what: str) -> None:
        if not holds:
            problems.append(Problem(what))

    needed = (f"{_E}/embeddings_0/weight", f"{_E}/position_encodings/encodings", f"{_E}/layer_0/ffn/linear_0/weight")
    absent = [name for name in (*needed, f"{_E}/layernorm_embedding/gamma") if name not in entries]
    expect(not absent, f"arrays are missing: {', '.join(absent)}")
    types = entries.get(f"{_E}/embeddings_1/weight")
    pooler = "pooler_dense/weight" in entries
    fixed = {f"{_E}/pre_norm": 0, f"{_E}/scale_embeddings": 0, f"{_E}/multi_query_attention": 0}
    fixed |= {f"{_E}/embeddings_merge": int(types is not None)}
    fixed |= {"pooler_activation": _TANH} if pooler else {}
    for name, value in fixed.items():
        expect(stored.number(name) == value, f"{name}: {stored.number(name)} is not supported")
    number = stored.number(f"{_E}/activation")
    activation = next((name for name, k in ACTIVATIONS.items() if k == number), None)
    expect(activation is not None, f"activation {number} is not supported")
    layers = layers_of(stored, _E, problems)
    if problems:
        raise DialectError("this CTranslate2 model is not supported", where=stored.path, problems=problems)
    epsilon = (stored.metadata.get("config") or {}).get("layer_norm_epsilon")
    values: dict[str, Any] = {
        **_class(stored, types is not None),
        "vocab_size": entries[needed[0]].shape[0],
        "d_model": entries[needed[0]].shape[-1],
        "num_heads": stored.number(f"{_E}/num_heads"),
        "num_layers": layers,
        "d_ff": entries[needed[2]].shape[0],
        "activation": activation,
        "max_positions": entries[needed[1]].shape[0],
        "token_types": 0 if types is None else types.shape[0],
        "pooler": pooler,
        "layer_norm_epsilon": 1e-5 if epsilon is None else epsilon,
    }
    try:
        return EncoderConfig.model_validate(values)
    except Invalid as error:
        problems = validation_problems(error)
        raise DialectError("this CTranslate2 model is not supported", where=stored.path, problems=problems) from None


def _class(stored: Upgraded, types: bool) -> dict[str, Any]:
    """Which class the model most likely came from: RoBERTa's tokens name padding ``<pad>``, and its positions begin
    behind that row."""
    tokens = stored.vocabulary("vocabulary") if "vocabulary" in stored.metadata.get("vocabularies", {}) else []
    if "<pad>" in tokens:
        return {"architecture": "roberta", "position_offset": tokens.index("<pad>") + 1}
    return {"architecture": "bert" if types else "distilbert"}
