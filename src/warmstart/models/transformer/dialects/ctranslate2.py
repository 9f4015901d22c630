"""How CTranslate2 spells the encoder-decoder Transformer (``TransformerSpec``, revision 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from warmstart.checked import Invalid
from warmstart.errors import DialectError, Problem, validation_problems
from warmstart.formats.checkpoint import Array, Checkpoint
from warmstart.lean import dataclass
from warmstart.models.family import Facts
from warmstart.models.model_bin import Floats, ModelBin, Upgraded, json_file, read_vocabularies, vocabulary_files
from warmstart.models.model_bin_beside import SINCE, manifest_config, manifest_of
from warmstart.models.model_bin_distances import distance_rules, distances_in, read_distances
from warmstart.models.model_bin_rules import layers_of
from warmstart.models.model_bin_shapes import rows_of
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.positions import sinusoids, some_of_sinusoids
from warmstart.spec.generated import Generated, constant
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Split
from warmstart.vocabularies.vocabulary import Vocabulary

ACTIVATIONS = {"relu": 0, "gelu_tanh": 1, "swish": 2, "gelu_erf": 3, "gelu": 4}
MAX_POSITIONS = 2048
_ENCODINGS = ("decoder/position_encodings/encodings", "encoder/position_encodings/encodings")


@dataclass(frozen=True)
class CTranslate2Dialect(ModelBin):
    """Weights [out, in], Q‖K‖V joined, positions written out.

    Its converters differ in details that follow the source: Marian's says ``scale_embeddings`` as a switch, others
    as the number (``scale``). transformers' tokenizers frame a source themselves (``frames``), and what it computes is
    in the model's own ``dtype``.
    """

    specifications = ("TransformerSpec",)
    scale: str = "flag"
    frames: bool = True
    dtype: str = "float32"

    def adapt(self, facts: Facts) -> CTranslate2Dialect:
        if facts.dialect == "transformers":
            return replace(self, scale="number", frames=False, dtype=facts.dtype)
        return replace(self, scale="number" if facts.dialect.startswith("fairseq") else "flag")

    def specification(self, config: TransformerConfig) -> tuple[str, int]:
        return "TransformerSpec", 7

    def rules(self, config: TransformerConfig) -> list[Rule]:
        c = config
        if not c.normalize_keys:
            raise DialectError(
                "CTranslate2 always normalises keys and values; this model was trained without",
                todo="use `warmstart translate` with the native engine, or train it further with normalize_keys: true",
            )
        rules = [
            rule("decoder/embeddings/weight", "decoder.embedding.weight"),
            rule("encoder/embeddings_0/weight", "encoder.embedding.weight"),
            rule("decoder/projection/weight", "decoder.output.weight"),
        ]
        for k in range(len(c.features)):
            rules.append(rule(f"encoder/embeddings_{k + 1}/weight", f"encoder.features.{k}.weight"))
        if c.output_bias:
            rules.append(rule("decoder/projection/bias", "decoder.output.bias"))
        if c.positions == "learned" and c.positions_per_side:
            rules.append(rule(_ENCODINGS[0], "decoder.positions.weight"))
            rules.append(rule(_ENCODINGS[1], "encoder.positions.weight"))
        elif c.positions == "learned":
            rules.append(rule(_ENCODINGS[0], "positions.weight"))
            rules.append(rule(_ENCODINGS[1], "positions.weight", copy=True))
        elif c.positions == "sinusoidal" and c.sinusoids != "from_one":
            length = c.max_positions or MAX_POSITIONS
            lengths = (c.decoder_max_positions or length, length)
            tables = {rows: self._positions(c, rows) for rows in lengths}  # one op, so that it is seen to be one array
            rules += [rule(name, (), tables[rows]) for name, rows in zip(_ENCODINGS, lengths, strict=True)]
        for name, value in self._attributes(c).items():
            # both spellings of a scale are read (_Reader), one is written
            loose = math.inf if name.endswith("/scale_embeddings") else 0.0
            rules.append(rule(name, (), replace(constant(value), tolerance=loose)))
        for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
            if c.norm == "pre":
                rules += _norm(c, f"{side}/layer_norm", f"{side}.norm", {})
            if c.layernorm_embedding:
                rules += _norm(c, f"{side}/layernorm_embedding", f"{side}.embedding_norm", {})
            rules += self._layer(c, side, {"i": layers})
        return rules

    def _positions(self, c: TransformerConfig, rows: int) -> Generated:
        shape = (rows, c.d_model)
        table = partial(sinusoids, *shape, c.sinusoids)
        some = partial(some_of_sinusoids, d_model=c.d_model, formula=c.sinusoids)
        return Generated(table, shape, _tolerance(c.sinusoids), self.dtype, some)

    def _layer(self, c: TransformerConfig, side: str, each: Mapping[str, int]) -> list[Rule]:
        theirs, ours = f"{side}/layer_{{i}}", f"{side}.layers.{{i}}"
        own, cross = f"{ours}.self_attention", f"{ours}.cross_attention"
        rules: list[Rule] = []
        for what in ("weight", "bias")[: 1 + c.attention_bias]:
            qkv = [f"{own}.{p}.{what}" for p in ("query", "key", "value")]
            rules += [
                rule(f"{theirs}/self_attention/linear_0/{what}", qkv, Split(3), each=each),
                rule(f"{theirs}/self_attention/linear_1/{what}", f"{own}.output.{what}", each=each),
            ]
            if side == "decoder":
                kv = [f"{cross}.key.{what}", f"{cross}.value.{what}"]
                rules += [
                    rule(f"{theirs}/attention/linear_0/{what}", f"{cross}.query.{what}", each=each),
                    rule(f"{theirs}/attention/linear_1/{what}", kv, Split(2), each=each),
                    rule(f"{theirs}/attention/linear_2/{what}", f"{cross}.output.{what}", each=each),
                ]
        inner = {"linear_0": "gate", "linear_0_noact": "up"} if c.gated else {"linear_0": "up"}
        for what in ("weight", "bias")[: 1 + c.ffn_bias]:
            for linear, part in {**inner, "linear_1": "down"}.items():
                rules.append(rule(f"{theirs}/ffn/{linear}/{what}", f"{ours}.ffn.{part}.{what}", each=each))
        if c.positions == "relative":
            rules += distance_rules(
                f"{theirs}/self_attention", f"{own}.relative_keys", f"{own}.relative_values", each,
                head_dim=c.d_model // c.num_heads, scaled=c.relative_scaled,
            )  # fmt: skip
        rules += _norm(c, f"{theirs}/self_attention/layer_norm", f"{ours}.self_attention_norm", each)
        rules += _norm(c, f"{theirs}/ffn/layer_norm", f"{ours}.ffn_norm", each)
        if side == "decoder":
            rules += _norm(c, f"{theirs}/attention/layer_norm", f"{ours}.cross_attention_norm", each)
        return rules

    def _attributes(self, c: TransformerConfig) -> dict[str, np.generic]:
        flags: dict[str, np.generic] = {
            "encoder/embeddings_merge": np.int8(c.feature_merge == "sum"),
            "encoder/multi_query_attention": np.int8(0),
            "decoder/alibi": np.int8(0),
            "decoder/alibi_use_positive_positions": np.int8(0),
            "decoder/scale_alibi": np.int8(0),
            "decoder/alignment_layer": np.int16(c.alignment_layer),
            "decoder/alignment_heads": np.int16(c.alignment_heads),
            "decoder/start_from_zero_embedding": np.int8(c.decoder_start == "zero"),
        }
        number = np.float32(math.sqrt(c.d_model) if c.scale_embeddings else 1.0)
        for side in ("encoder", "decoder"):
            flags[f"{side}/activation"] = np.int8(ACTIVATIONS[c.activation])
            flags[f"{side}/num_heads"] = np.int16(c.num_heads)
            flags[f"{side}/pre_norm"] = np.int8(c.norm == "pre")
            flags[f"{side}/scale_embeddings"] = np.int8(c.scale_embeddings) if self.scale == "flag" else number
        return flags

    def files(
        self, config: TransformerConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts
    ) -> Mapping[str, bytes]:
        target, epsilon = vocabularies["target"], config.layer_norm_epsilon
        eos, bos = target.tokens[target.eos_id], getattr(target, "bos", None) or "<s>"
        zero = bos if self.frames else eos
        start = {"zero": zero, "bos": bos, "eos": eos, "pad": getattr(target, "pad", None), "given": None}
        content = {
            "add_source_bos": config.source_bos and self.frames,
            "add_source_eos": config.source_eos and self.frames,
            "bos_token": bos,
            "decoder_start_token": start[config.decoder_start],
            "eos_token": eos,
            "layer_norm_epsilon": epsilon if config.rms_norm or epsilon != 1e-5 else None,
            "multi_query_attention": False,
            "unk_token": "<unk>" if target.unk_id is None else target.tokens[target.unk_id],
        }
        tables = {side: vocabularies[side].tokens for side in ("source", "target")}
        if config.features:  # all of a source's vocabularies are numbered then
            more = [f"source_{k + 2}" for k in range(len(config.features))]
            sources = {side: vocabularies[side].tokens for side in more}
            tables = {"source_1": tables["source"], **sources, "target": tables["target"]}
        return {"config.json": json_file(content), **vocabulary_files(tables)}

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        tables = {"source": "encoder/embeddings_0/weight", "target": "decoder/embeddings/weight"}
        there = self.view(checkpoint) if not isinstance(checkpoint, Floats) else checkpoint
        while (name := f"encoder/embeddings_{len(tables) - 1}/weight") in there.entries:
            tables[f"source_{len(tables)}"] = name
        sizes = {side: rows_of(there.entries, name) for side, name in tables.items() if name in there.entries}
        return read_vocabularies(checkpoint, files, sizes)

    def config_of(self, stored: Upgraded) -> TransformerConfig:
        found = _Reader(stored).config()
        kept = manifest_config(stored.path, "transformer", TransformerConfig)
        framed = manifest_of(stored.path).get("origin") == "transformers"
        return kept if kept is not None and _repeats(kept, found, framed) else found


def _repeats(kept: TransformerConfig, found: TransformerConfig, framed: bool) -> bool:
    """Whether ``kept`` says what was ``found``, and otherwise only what a ``model.bin`` has no place for: rates of
    dropout, that tokenizers frame a source themselves (``framed``), and which of two equal tokens the decoder starts
    from."""
    free: dict[str, Any] = {key: 0.0 for key in TransformerConfig.model_fields if key.endswith("dropout")}
    free |= {"source_bos": False, "source_eos": False} if framed and not (found.source_bos or found.source_eos) else {}
    free |= {"decoder_start": "bos"} if (kept.decoder_start, found.decoder_start) == ("pad", "bos") else {}
    return kept.model_copy(update=free) == found.model_copy(update=free)


def _computed(table: Array, formula: str) -> bool:
    ours = sinusoids(len(table), table.shape[1], formula).astype(table.dtype)
    return bool(np.allclose(ours.astype(np.float32), table.astype(np.float32), rtol=0, atol=_tolerance(formula)))


def _tolerance(formula: str) -> float:
    """How far a table may be from ours: fairseq's and M2M100's are torch's float32, which differs by processor."""
    return 2e-4 if formula == "fairseq" else 0.0


def _norm(c: TransformerConfig, theirs: str, ours: str, each: Mapping[str, int]) -> list[Rule]:
    """The engine computes an RMS norm where there is no beta."""
    parts = {"gamma": "weight"} if c.rms_norm else {"gamma": "weight", "beta": "bias"}
    return [rule(f"{theirs}/{a}", f"{ours}.{b}", each=each) for a, b in parts.items()]


_FLAGS = {
    "encoder/multi_query_attention": 0, "decoder/alibi": 0, "decoder/scale_alibi": 0,
    "decoder/alibi_use_positive_positions": 0,
}  # fmt: skip


class _Reader:
    """The configuration of a model.bin from its attributes, the shapes of its arrays and its config.json."""

    def __init__(self, stored: Upgraded) -> None:
        self.stored = stored
        self.problems: list[Problem] = []

    def config(self) -> TransformerConfig:
        names, entries = set(self.stored.entries), self.stored.entries
        for name, value in _FLAGS.items():
            found = self.stored.number(name)
            self._expect(found == value, f"{name}: {found} is not supported")
        self._expect("decoder/project_in/weight" not in names, "decoder/project_in/weight is not supported")
        needed = [f"{side}/{part}" for side, part in _NEEDED]
        self._expect(not (absent := [n for n in needed if n not in names]), f"arrays are missing: {', '.join(absent)}")
        self._raise()
        d_model = entries["decoder/embeddings/weight"].shape[-1]
        self._widths(d_model)
        values = dict(
            source_vocab_size=entries["encoder/embeddings_0/weight"].shape[0],
            target_vocab_size=entries["decoder/embeddings/weight"].shape[0],
            d_model=d_model,
            num_heads=self._both("num_heads", 8),
            d_ff=entries["encoder/layer_0/ffn/linear_0/weight"].shape[0],
            decoder_d_ff=self._decoder_d_ff(),
            encoder_layers=layers_of(self.stored, "encoder", self.problems),
            decoder_layers=layers_of(self.stored, "decoder", self.problems),
            activation=self._activation(),
            norm="pre" if self._both("pre_norm", 1) else "post",
            tied_embeddings=self._tied(),
            output_bias="decoder/projection/bias" in names,
            attention_bias=any("attention/linear_" in n and n.endswith("/bias") for n in names),
            ffn_bias=any("/ffn/linear_" in n and n.endswith("/bias") for n in names),
            gated="encoder/layer_0/ffn/linear_0_noact/weight" in names,
            rms_norm=self._rms_norm(),
            scale_embeddings=self._scaled(d_model),
            layernorm_embedding="decoder/layernorm_embedding/gamma" in names,
            alignment_layer=self.stored.attribute("decoder/alignment_layer", -1),
            alignment_heads=self.stored.attribute("decoder/alignment_heads", 1),
            **self._positions(d_model),
            **self._features(),
            **self._tokens(),
        )
        self._raise()
        try:
            return TransformerConfig.model_validate(values)
        except Invalid as error:
            self.problems += validation_problems(error)
            self._raise()
            raise

    def _raise(self) -> None:
        if self.problems:
            raise DialectError(
                "this CTranslate2 model is not supported", where=self.stored.path, problems=self.problems
            )

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.problems.append(Problem(what))

    def _both(self, attribute: str, default: int) -> int:
        found = {self.stored.attribute(f"{side}/{attribute}", default) for side in ("encoder", "decoder")}
        self._expect(len(found) == 1, f"{attribute} differs on the two sides: {sorted(found)}")
        return int(min(found))

    def _activation(self) -> Any:
        number = self._both("activation", 0)
        name = next((n for n, k in ACTIVATIONS.items() if k == number), None)
        self._expect(name is not None, f"activation {number} is not supported")
        return name

    def _widths(self, d_model: int) -> None:
        for name, entry in self.stored.entries.items():
            wide = name.endswith(("embeddings/weight", "projection/weight", "/gamma", "/beta"))
            if wide and entry.shape[-1] != d_model:
                self._expect(False, f"{name} is of shape {list(entry.shape)}, not {d_model} wide")

    def _decoder_d_ff(self) -> int | None:
        entries = self.stored.entries
        width = entries["decoder/layer_0/ffn/linear_0/weight"].shape[0]
        return None if width == entries["encoder/layer_0/ffn/linear_0/weight"].shape[0] else width

    def _tied(self) -> Any:
        names = ("encoder/embeddings_0/weight", "decoder/embeddings/weight", "decoder/projection/weight")
        source, target, output = (self.stored.ties.get(name, name) for name in names)
        if target == output:
            return "all" if source == target else "target"
        return "inputs" if source == target else "none"

    def _rms_norm(self) -> bool:
        return not any(name.endswith("/beta") for name in self.stored.entries)

    def _scaled(self, d_model: int) -> bool:
        found = {self._one_scale(side, d_model) for side in ("encoder", "decoder")}
        self._expect(len(found) == 1 and None not in found, "scale_embeddings is neither 1 nor √d_model on both sides")
        return True in found

    def _one_scale(self, side: str, d_model: int) -> bool | None:
        entry = self.stored.entries.get(f"{side}/scale_embeddings")
        value = self.stored.attribute(f"{side}/scale_embeddings", 1)
        if entry is None or entry.dtype == "int8":
            return bool(value)
        return {np.float32(math.sqrt(d_model)): True, np.float32(1): False}.get(np.float32(value))

    def _features(self) -> dict[str, Any]:
        tables: list[tuple[int, ...]] = []
        entries = self.stored.entries
        while (entry := entries.get(f"encoder/embeddings_{len(tables) + 1}/weight")) is not None:
            tables.append(entry.shape)
        merge = self.stored.attribute("encoder/embeddings_merge", 0)
        self._expect(merge in (0, 1), f"encoder/embeddings_merge: {merge} is not supported")
        words = "encoder/embeddings_0/weight"
        roots = {self.stored.ties.get(f"encoder/embeddings_{k + 1}/weight") for k in range(len(tables))}
        tied = roots == {self.stored.ties.get(words, words)}
        return {"features": tables, "feature_merge": "sum" if merge == 1 else "concat", "tied_features": tied}

    def _positions(self, d_model: int) -> dict[str, Any]:
        keys = distances_in(self.stored)
        if keys:
            return read_distances(self.stored, keys)
        there = [name in self.stored.entries for name in _ENCODINGS]
        self._expect(all(there) or not any(there), "one side alone brings a table of positions")
        if not all(there):
            return {"positions": "sinusoidal", "sinusoids": "from_one"}
        target, source = (self.stored.read(name) for name in _ENCODINGS)
        longer = {} if len(target) == len(source) else {"decoder_max_positions": len(target)}
        for formula in ("marian", "transformers", "fairseq"):
            if all(_computed(table, formula) for table in (target, source)):
                kept = None if len(source) == MAX_POSITIONS and not longer else len(source)
                return {"positions": "sinusoidal", "sinusoids": formula, "max_positions": kept, **longer}
        if not np.array_equal(target, source):
            return {"positions": "learned", "max_positions": len(source), "positions_per_side": True, **longer}
        return {"positions": "learned", "max_positions": len(source)}

    def _tokens(self) -> dict[str, Any]:
        """config.json, or before version 6 what stood among the variables; the engine's own defaults."""
        given = self.stored.metadata.get("config") or {}
        moved = self.stored.moved
        bos, eos = given.get("bos_token", "<s>"), given.get("eos_token", "</s>")
        older = self.stored.metadata["binary_version"] < SINCE
        start = given.get("decoder_start_token", moved.get("decoder_start_token", bos) if older else None)
        if self.stored.attribute("decoder/start_from_zero_embedding", 0):
            kind = "zero"
        elif start is None or moved.get("user_decoder_start_tokens"):
            kind = "given"
        else:
            kind = "bos" if start == bos else "eos" if start == eos else "pad"
        epsilon = given.get("layer_norm_epsilon")
        return {
            "decoder_start": kind,
            "source_bos": bool(given.get("add_source_bos", moved.get("with_source_bos", False))),
            "source_eos": bool(given.get("add_source_eos", moved.get("with_source_eos", False))),
            "layer_norm_epsilon": (1e-6 if self._rms_norm() else 1e-5) if epsilon is None else epsilon,
        }


_NEEDED = [
    ("encoder", "embeddings_0/weight"),
    ("decoder", "embeddings/weight"),
    ("decoder", "projection/weight"),
    *((side, "layer_0/ffn/linear_0/weight") for side in ("encoder", "decoder")),
]
