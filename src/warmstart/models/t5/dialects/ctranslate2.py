"""How CTranslate2 spells T5: a ``TransformerSpec`` with biases of distances, RMS norms, no other biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.checked import Invalid
from warmstart.errors import DialectError, Problem, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.family import Facts
from warmstart.models.model_bin import Floats, ModelBin, Upgraded, json_file, read_vocabularies, vocabulary_files
from warmstart.models.model_bin_shapes import rows_of
from warmstart.models.t5.config import T5Config
from warmstart.models.t5.parameters import EMBEDDING, VOCABULARY
from warmstart.models.t5.vocabulary import PAD, vocabulary_of
from warmstart.spec.generated import constant
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Split
from warmstart.spec.templates import match
from warmstart.vocabularies.vocabulary import Vocabulary

ACTIVATIONS = {"relu": 0, "gelu_tanh": 1, "swish": 2, "gelu_erf": 3, "gelu": 4}
_EPSILON = 1e-6  # what the engine takes for RMS norms where config.json says nothing
_BIAS = "relative_attention_bias"
_DISTANCE = "relative_attention_max_distance"
_TABLES = ("decoder/embeddings/weight", "encoder/embeddings_0/weight", "decoder/projection/weight")
_QUERY = "encoder/layer_0/self_attention/linear_0/weight"


class CTranslate2Dialect(ModelBin):
    """Weights [out, in], Q‖K‖V joined. A bias that layers share is written in each of them."""

    specifications = ("TransformerSpec",)

    def recognise(self, checkpoint: Checkpoint) -> bool:
        return super().recognise(checkpoint) and any(name.endswith(f"/{_BIAS}") for name in _names(checkpoint))

    def specification(self, config: T5Config) -> tuple[str, int]:
        return "TransformerSpec", 7

    # what both directions share

    def rules(self, config: T5Config) -> list[Rule]:
        c = config
        rules = [
            rule(_TABLES[0], EMBEDDING),
            rule(_TABLES[1], EMBEDDING, copy=True),
            rule(_TABLES[2], "decoder.output.weight"),
        ]
        for name, value in _attributes(c).items():
            rules.append(rule(name, (), constant(value)))
        for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
            rules.append(rule(f"{side}/layer_norm/gamma", f"{side}.norm.weight"))
            if c.position_bias == "shared":
                bias = f"{side}.position_bias.weight"
                rules += [rule(f"{side}/layer_{i}/self_attention/{_BIAS}", bias, copy=i > 0) for i in range(layers)]
            rules += _layer(c, side, {"i": layers})
        return rules

    # what is written

    def files(self, config: T5Config, vocabularies: Mapping[str, Vocabulary], facts: Facts) -> Mapping[str, bytes]:
        vocabulary = vocabularies[VOCABULARY]
        pad = getattr(vocabulary, "pad", None) or PAD
        content = {
            "add_source_bos": False,
            "add_source_eos": False,
            "bos_token": pad,
            "decoder_start_token": pad,
            "eos_token": vocabulary.tokens[vocabulary.eos_id],
            "layer_norm_epsilon": None if config.layer_norm_epsilon == _EPSILON else config.layer_norm_epsilon,
            "multi_query_attention": False,
            "unk_token": "<unk>" if vocabulary.unk_id is None else vocabulary.tokens[vocabulary.unk_id],
        }
        return {"config.json": json_file(content), **vocabulary_files({"shared": vocabulary.tokens})}

    # what is read

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        there = checkpoint if isinstance(checkpoint, Floats) else self.view(checkpoint)
        rows = rows_of(there.entries, _TABLES[0])
        if files:
            return vocabulary_of([Path(file) for file in files], rows, checkpoint.path)
        found = read_vocabularies(checkpoint, files, {VOCABULARY: rows})
        vocabulary = found.get(VOCABULARY)
        if vocabulary is not None and getattr(vocabulary, "pad", None) is None:
            vocabulary.pad = getattr(vocabulary, "bos", None)  # type: ignore[attr-defined]
        return found

    def config_of(self, stored: Upgraded) -> T5Config:
        return _Reader(stored).config()


def _names(checkpoint: Checkpoint) -> list[str]:
    return list(checkpoint.entries)


def _layer(c: T5Config, side: str, each: Mapping[str, int]) -> list[Rule]:
    theirs, ours = f"{side}/layer_{{i}}", f"{side}.layers.{{i}}"
    own, cross = f"{ours}.self_attention", f"{ours}.cross_attention"
    qkv = [f"{own}.{part}.weight" for part in ("query", "key", "value")]
    rules = [
        rule(f"{theirs}/self_attention/linear_0/weight", qkv, Split(3), each=each),
        rule(f"{theirs}/self_attention/linear_1/weight", f"{own}.output.weight", each=each),
        rule(f"{theirs}/self_attention/layer_norm/gamma", f"{ours}.self_attention_norm.weight", each=each),
        rule(f"{theirs}/ffn/linear_1/weight", f"{ours}.ffn.down.weight", each=each),
        rule(f"{theirs}/ffn/layer_norm/gamma", f"{ours}.ffn_norm.weight", each=each),
    ]
    inner = {"linear_0": "gate", "linear_0_noact": "up"} if c.gated else {"linear_0": "up"}
    rules += [rule(f"{theirs}/ffn/{n}/weight", f"{ours}.ffn.{part}.weight", each=each) for n, part in inner.items()]
    if side == "decoder":
        kv = [f"{cross}.{part}.weight" for part in ("key", "value")]
        rules += [
            rule(f"{theirs}/attention/linear_0/weight", f"{cross}.query.weight", each=each),
            rule(f"{theirs}/attention/linear_1/weight", kv, Split(2), each=each),
            rule(f"{theirs}/attention/linear_2/weight", f"{cross}.output.weight", each=each),
            rule(f"{theirs}/attention/layer_norm/gamma", f"{ours}.cross_attention_norm.weight", each=each),
        ]
    if c.position_bias == "per_layer":
        rules.append(rule(f"{theirs}/self_attention/{_BIAS}", f"{own}.position_bias.weight", each=each))
    return rules


_QUERIES = ("/self_attention/linear_0/weight", "/attention/linear_0/weight")
_FIXED: dict[str, np.generic] = {
    "encoder/embeddings_merge": np.int8(0),
    "encoder/multi_query_attention": np.int8(0),
    "encoder/pre_norm": np.int8(1),
    "encoder/scale_embeddings": np.int8(0),
    "decoder/alibi": np.int8(0),
    "decoder/alibi_use_positive_positions": np.int8(0),
    "decoder/alignment_heads": np.int16(1),
    "decoder/alignment_layer": np.int16(-1),
    "decoder/pre_norm": np.int8(1),
    "decoder/scale_alibi": np.int8(0),
    "decoder/scale_embeddings": np.int8(0),
    "decoder/start_from_zero_embedding": np.int8(0),
}


def _attributes(c: T5Config) -> dict[str, np.generic]:
    flags = dict(_FIXED)
    if c.scale_outputs:
        flags["decoder/scale_outputs"] = np.float32(c.d_model**-0.5)
    for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
        flags[f"{side}/activation"] = np.int8(ACTIVATIONS[c.activation])
        flags[f"{side}/num_heads"] = np.int16(c.num_heads)
        for i in range(layers):
            for attention in ("self_attention", "attention")[: 1 if side == "encoder" else 2]:
                flags[f"{side}/layer_{i}/{attention}/queries_scale"] = np.float32(1)
            flags[f"{side}/layer_{i}/self_attention/{_DISTANCE}"] = np.int32(c.max_distance)
    return flags


class _Reader:
    """The configuration of a model.bin from its attributes, the shapes of its arrays and its config.json."""

    def __init__(self, stored: Upgraded) -> None:
        self.stored, self.entries = stored, stored.entries
        self.problems: list[Problem] = []

    def config(self) -> T5Config:
        needed = [*_TABLES, _QUERY, f"encoder/layer_0/self_attention/{_BIAS}", "encoder/layer_0/ffn/linear_0/weight"]
        self._expect(not (absent := [n for n in needed if n not in self.entries]), f"arrays are missing: {absent}")
        self._raise()
        for name, value in _FIXED.items():
            found = self.stored.number(name)
            self._expect(found == value.item(), f"{name}: {found} is not supported")
        rows, d_model = self.entries[_TABLES[0]].shape
        heads = int(self._both("num_heads", 8))
        buckets = self.entries[f"encoder/layer_0/self_attention/{_BIAS}"].shape[0]
        joined = self.entries[_QUERY].shape[0]
        self._expect(heads > 0 and joined % (3 * heads) == 0, f"{_QUERY} does not divide into 3 × {heads} heads")
        scale = self.stored.attribute("decoder/scale_outputs", None)
        self._expect(
            scale is None or np.float32(scale) in (np.float32(d_model**-0.5), np.float32(1)),
            f"decoder/scale_outputs: {scale} is not 1/√d_model",
        )
        number = self._both("activation", 0)
        activation = next((name for name, k in ACTIVATIONS.items() if k == number), None)
        self._expect(activation is not None, f"activation {number} is not supported")
        given = self.stored.metadata.get("config") or {}
        self._tokens(given)
        layers = {side: self._layers(side) for side in ("encoder", "decoder")}
        scales = [f"{n.removesuffix('linear_0/weight')}queries_scale" for n in self.entries if n.endswith(_QUERIES)]
        unscaled = [name for name in scales if self.stored.attribute(name) != 1]
        self._expect(not unscaled, f"queries are scaled, which T5's are not: {', '.join(unscaled)} is not 1")
        places = [(side, i) for side, count in layers.items() for i in range(count)]
        distances = {self.stored.attribute(f"{side}/layer_{i}/self_attention/{_DISTANCE}") for side, i in places}
        self._expect(len(distances) == 1, f"{_DISTANCE} differs between layers: {sorted(map(str, distances))}")
        self._raise()
        ties = self.stored.ties
        values: dict[str, Any] = {
            "vocab_size": rows,
            "d_model": d_model,
            "d_kv": joined // (3 * heads),
            "num_heads": heads,
            "d_ff": self.entries["encoder/layer_0/ffn/linear_0/weight"].shape[0],
            "encoder_layers": layers["encoder"],
            "decoder_layers": layers["decoder"],
            "activation": activation,
            "gated": "encoder/layer_0/ffn/linear_0_noact/weight" in self.entries,
            "tied_output": ties.get(_TABLES[2], _TABLES[2]) == ties.get(_TABLES[0], _TABLES[0]),
            "scale_outputs": scale is not None and np.float32(scale) != 1,
            "position_bias": "shared" if self._one_bias(layers) else "per_layer",
            "num_buckets": buckets,
            "max_distance": distances.pop(),
            "layer_norm_epsilon": given.get("layer_norm_epsilon") or _EPSILON,
        }
        try:
            return T5Config.model_validate(values)
        except Invalid as error:
            problems = validation_problems(error)
            raise DialectError(_REFUSED, where=self.stored.path, problems=problems) from None

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.problems.append(Problem(what))

    def _raise(self) -> None:
        if self.problems:
            raise DialectError(_REFUSED, where=self.stored.path, problems=self.problems)

    def _both(self, attribute: str, default: int) -> int:
        found = {self.stored.attribute(f"{side}/{attribute}", default) for side in ("encoder", "decoder")}
        self._expect(len(found) == 1, f"{attribute} differs on the two sides: {sorted(found)}")
        return int(min(found))

    def _layers(self, side: str) -> int:
        """Layers must follow each other: the engine stops at the first gap, in silence."""
        found = {values[0]["i"] for n in self.entries if (values := match(f"{side}/layer_{{i}}/**", n))}
        missing = sorted(set(range(max(found, default=-1) + 1)) - found)
        self._expect(bool(found) and not missing, f"{side}/layer_{missing[0] if missing else 0} is missing")
        return len(found)

    def _one_bias(self, layers: Mapping[str, int]) -> bool:
        """Whether the layers of each side share their bias: equal arrays are one in the file."""
        for side, count in layers.items():
            names = [f"{side}/layer_{i}/self_attention/{_BIAS}" for i in range(count)]
            if len({self.stored.ties.get(name, name) for name in names}) > 1:
                return False
        return True

    def _tokens(self, given: Mapping[str, Any]) -> None:
        pad = given.get("bos_token", "<s>")
        self._expect(given.get("decoder_start_token", pad) == pad, "the decoder does not start from the padding token")
        for key in ("add_source_bos", "add_source_eos"):
            self._expect(not given.get(key, False), f"{key}: true is not supported")


_REFUSED = "this CTranslate2 model is not supported"
