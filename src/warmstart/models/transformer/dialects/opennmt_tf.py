"""How OpenNMT-tf 2 spells the encoder-decoder Transformer: TensorFlow checkpoints named by attributes of objects.

What no array tells (heads, activation) stands in ``model_description.py`` beside the checkpoint
(``opennmt_tf_description.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from warmstart.checked import Invalid
from warmstart.errors import DialectError, Problem, VocabularyError, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.lean import dataclass
from warmstart.models.checks import layers_as_said, require
from warmstart.models.opennmt_tf import (
    ACTIVATIONS,
    DESCRIPTION,
    EPSILON,
    VALUE,
    OpenNMTTF,
    count_layers,
    linear,
    norm,
    nothing_says_heads,
    read_description,
    read_tokens,
)
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.dialects.opennmt_tf_description import (
    CATALOG,
    describe,
    layers_said,
    of_catalog,
    parallel_inputs,
)
from warmstart.spec.lossy import ExtraRows
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Transpose
from warmstart.vocabularies.tokens import TokenVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

_INPUTTERS = {
    "encoder": "model/examples_inputter/features_inputter", "decoder": "model/examples_inputter/labels_inputter",
}  # fmt: skip
_TABLES = {side: f"{inputter}/embedding" for side, inputter in _INPUTTERS.items()}
# Of a source that several inputters read in parallel, ``inputters.k`` reads the words and features k - 1.
_PARALLEL = f"{_INPUTTERS['encoder']}/inputters/{{k}}/embedding"
_SAY_LAYERS = f"a model of other sizes is described by {DESCRIPTION}: model = lambda: Transformer(num_layers=(6, 3), …)"
_LAYERS = {side: f"model/{side}/layers/{{i}}" for side in ("encoder", "decoder")}


@dataclass(frozen=True)
class OpenNMTTFDialect(OpenNMTTF):
    """Kernels [in, out]; a table of learned positions has one row more.

    Inputs in parallel that one encoder reads, joined or added, are features of the source.
    """

    def recognise(self, checkpoint: Checkpoint) -> bool:
        entries, tables = checkpoint.entries, (*_TABLES.values(), _PARALLEL.format(k=0))
        decodes = f"model/decoder/layers/0/attention/0/layer/linear_queries/kernel{VALUE}" in entries
        return checkpoint.format == "tensorflow" and decodes and any(f"{name}{VALUE}" in entries for name in tables)

    def read_config(self, checkpoint: Checkpoint) -> TransformerConfig:
        problems: list[Problem] = []
        said = self._description(checkpoint, problems)
        activation = str(said.get("ffn_activation", "relu"))
        if activation not in ACTIVATIONS:
            problems.append(Problem(f"ffn_activation: {activation!r} is not supported"))
        reduction = str(said.get("attention_reduction", "FIRST_HEAD_LAST_LAYER"))
        if reduction not in ("FIRST_HEAD_LAST_LAYER", "AVERAGE_LAST_LAYER"):
            problems.append(Problem(f"attention_reduction: {reduction} is not supported"))
        names = [name.removesuffix(VALUE) for name in checkpoint.entries]
        stored = sum(_PARALLEL.format(k=k) in names for k in range(len(names)))
        single = _TABLES["encoder"] in names
        encoders = any(name.startswith("model/encoder/encoders/") for name in names)
        parallel = parallel_inputs(said, None if single else stored, encoders, problems)
        layers = {side: count_layers(names, side, problems) for side in _LAYERS}
        problems += [replace(p, todo=_SAY_LAYERS) for p in layers_as_said(layers_said(said), layers)]
        problems += _either_way(said, any(name.endswith("/relative_position_keys") for name in names))
        if problems:
            raise DialectError("this OpenNMT-tf model is not supported", where=checkpoint.path, problems=problems)
        there = set(names)

        def shape(name: str) -> tuple[int, ...]:
            return checkpoint.entries[name + VALUE].shape

        tables = [shape(_PARALLEL.format(k=k)) for k in range(stored)]
        tables = tables or [shape(_TABLES["encoder" if single else "decoder"])]
        source = tables[0]
        features = [*tables[1:], *[source] * (parallel.count - len(tables))]  # one that is shared is saved once
        joined = sum(width for _, width in features) if parallel.merge == "concat" else 0
        shared = _TABLES["decoder"] not in there or not (single or stored)
        target = source if shared else shape(_TABLES["decoder"])
        output = "model/decoder/output_layer/kernel" not in there
        inner, decoder_inner = (shape(_LAYERS[side].format(i=0) + "/ffn/layer/inner/kernel")[1] for side in _LAYERS)
        first = _LAYERS["encoder"].format(i=0)
        try:
            return TransformerConfig.model_validate(
                {
                    "source_vocab_size": source[0],
                    "target_vocab_size": target[0],
                    "d_model": source[1] + joined,
                    "features": features,
                    "feature_merge": parallel.merge if features else "concat",
                    "tied_features": bool(features) and stored <= 1,
                    "num_heads": said["num_heads"],
                    "d_ff": inner,
                    "decoder_d_ff": None if inner == decoder_inner else decoder_inner,
                    "encoder_layers": layers["encoder"],
                    "decoder_layers": layers["decoder"],
                    "activation": ACTIVATIONS[activation],
                    "norm": "pre" if "model/encoder/layer_norm/gamma" in there else "post",
                    "tied_embeddings": {(True, True): "all", (True, False): "inputs", (False, True): "target"}.get(
                        (shared, output), "none"
                    ),
                    "output_bias": "model/decoder/output_layer/bias" in there,
                    "attention_bias": f"{first}/self_attention/layer/linear_queries/bias" in there,
                    "ffn_bias": f"{first}/ffn/layer/inner/bias" in there,
                    "decoder_start": "bos",
                    "source_bos": "start" in self.controls,
                    "source_eos": "end" in self.controls or ("auto" in self.controls and bool(said.get("source_end"))),
                    "alignment_heads": 0 if reduction == "AVERAGE_LAST_LAYER" else 1,
                    "layer_norm_epsilon": EPSILON,
                    **_positions(there, shape),
                }
            )
        except Invalid as error:
            problems = validation_problems(error)
            raise DialectError("the model's options are wrong", where=checkpoint.path, problems=problems) from None

    def _description(self, checkpoint: Checkpoint, problems: list[Problem]) -> dict[str, Any]:
        """What the model's class is called with, by the names of its arguments."""
        if self.model_type:
            if self.model_type not in CATALOG:
                what = f"{self.model_type} is not a model that is known here"
                raise DialectError(what, where=checkpoint.path, expected=", ".join(CATALOG))
            return {**of_catalog(self.model_type), "source_inputter": None}
        found = read_description(checkpoint)
        if found is None:
            problems.append(nothing_says_heads(list(CATALOG)))
            return {}
        return describe(*found, problems)

    def rules(self, config: TransformerConfig) -> list[Rule]:
        c = config
        learned = c.positions == "learned"
        require(
            c, "OpenNMT-tf", normalize_keys=(True,), layernorm_embedding=(False,), positions_per_side=(learned,),
            sinusoids=("from_one",) if c.positions == "sinusoidal" else (c.sinusoids,), gated=(False,),
            relative_scaled=(True,), rms_norm=(False,),
        )  # fmt: skip
        shared = c.tied_embeddings in ("all", "inputs")
        output = "model/decoder/output_layer"
        rules = [
            rule(_TABLES["encoder"] + VALUE, "encoder.embedding.weight", alternative=bool(c.features)),
            rule(_PARALLEL.format(k=0) + VALUE, "encoder.embedding.weight", alternative=not c.features or shared),
            # one table for everything is saved where it is first found: with inputs in parallel, as the target's
            rule(_TABLES["decoder"] + VALUE, "decoder.embedding.weight", alternative=shared and not c.features),
            rule(
                f"{output}/kernel{VALUE}",
                "decoder.output.weight",
                Transpose(),
                alternative=c.tied_embeddings in ("all", "target"),
            ),
        ]
        for k in range(len(c.features)):
            table = _PARALLEL.format(k=k + 1) + VALUE
            rules.append(rule(table, f"encoder.features.{k}.weight", alternative=c.tied_features))
        if c.output_bias:
            rules.append(rule(f"{output}/bias{VALUE}", "decoder.output.bias"))
        for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
            if learned:
                table = f"model/{side}/position_encoder/position_embedding{VALUE}"
                rules.append(rule(table, f"{side}.positions.weight", ExtraRows(first=1)))
            if c.norm == "pre":
                rules += norm(f"model/{side}/layer_norm", f"{side}.norm", {})
            rules += _layer(c, side, {"i": layers})
        return rules

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        if not files:
            return {}
        inputs = self.read_config(checkpoint).features
        sides = ["source", *(f"source_{k + 2}" for k in range(len(inputs))), "target"]
        paths = [Path(f) for f in files] * (2 if len(files) == 1 and not inputs else 1)
        if len(paths) != len(sides):
            raise VocabularyError(
                f"this model has {len(sides)} vocabularies", expected=", ".join(sides), found=f"{len(paths)} files"
            )
        found: dict[str, Vocabulary] = {}
        for side, path in zip(sides, paths, strict=True):
            tokens = read_tokens(path)
            end = "</s>" if "</s>" in tokens or side == "target" else None
            found[side] = TokenVocabulary(tokens, end, pad="<blank>")
            found[side].path = path
        return found


def _either_way(said: Mapping[str, Any], distances: bool) -> list[Problem]:
    """That positions are encoded or distances have vectors: of a model with both or with neither the engine would
    compute another."""
    encoded = said.get("position_encoder_class", "") is not None
    if not encoded and not distances:
        return [Problem("a model without positions (position_encoder_class=None) is not supported")]
    if encoded and distances and isinstance(said.get("maximum_relative_position"), int):
        what = "vectors of distances beside encoded positions are not supported"
        return [Problem(what, expected="position_encoder_class=None with maximum_relative_position")]
    return []


def _positions(there: set[str], shape: Any) -> dict[str, Any]:
    distances = f"{_LAYERS['encoder'].format(i=0)}/self_attention/layer/relative_position_keys"
    if distances in there:
        return {"positions": "relative", "max_relative_positions": (shape(distances)[0] - 1) // 2}
    tables = [f"model/{side}/position_encoder/position_embedding" for side in _LAYERS]
    if not all(table in there for table in tables):
        return {"positions": "sinusoidal", "sinusoids": "from_one"}
    source, target = (shape(table)[0] - 1 for table in tables)
    longer = None if source == target else target
    sizes = {"max_positions": source, "decoder_max_positions": longer}
    return {"positions": "learned", "positions_per_side": True, **sizes}


def _layer(c: TransformerConfig, side: str, each: Mapping[str, int]) -> list[Rule]:
    theirs, ours = _LAYERS[side], f"{side}.layers.{{i}}"
    place_of_norm = f"{'input' if c.norm == 'pre' else 'output'}_layer_norm"
    attentions = {"self_attention": "self_attention"}
    if side == "decoder":
        attentions["attention/0"] = "cross_attention"
    rules: list[Rule] = []
    names = (
        ("linear_queries", "query"),
        ("linear_keys", "key"),
        ("linear_values", "value"),
        ("linear_output", "output"),
    )
    for place, attention in attentions.items():
        for spelt, part in names:
            rules += linear(f"{theirs}/{place}/layer/{spelt}", f"{ours}.{attention}.{part}", each, c.attention_bias)
        rules += norm(f"{theirs}/{place}/{place_of_norm}", f"{ours}.{attention}_norm", each)
    for what in ("keys", "values") if c.positions == "relative" else ():
        table = f"{theirs}/self_attention/layer/relative_position_{what}{VALUE}"
        rules.append(rule(table, f"{ours}.self_attention.relative_{what}", each=each))
    rules += linear(f"{theirs}/ffn/layer/inner", f"{ours}.ffn.up", each, c.ffn_bias)
    rules += linear(f"{theirs}/ffn/layer/outer", f"{ours}.ffn.down", each, c.ffn_bias)
    return rules + norm(f"{theirs}/ffn/{place_of_norm}", f"{ours}.ffn_norm", each)
