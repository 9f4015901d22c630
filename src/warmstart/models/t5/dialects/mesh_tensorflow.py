"""How mesh-tensorflow spells T5, in TensorFlow bundles: the layout of T5X (``t5x/checkpoint_importer.py``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from warmstart.errors import DialectError, Problem
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.family import Dialect, Facts
from warmstart.models.t5.config import T5Config
from warmstart.models.t5.dialects.google import (
    Shapes,
    activations_of,
    count_layers,
    has_output,
    read_vocabulary,
    vocabulary_files,
)
from warmstart.models.t5.gin import gin_beside, gin_text
from warmstart.models.t5.parameters import EMBEDDING
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.op import Op
from warmstart.spec.ops import Identity, Transpose
from warmstart.vocabularies.vocabulary import Vocabulary

GIN = "operative_config.gin"
_EMBEDDING, _OUTPUT = "shared/embedding", "decoder/logits/kernel"
_ATTENTION = "SelfAttention"
_BIAS = f"{_ATTENTION}/relative_attention_bias"
_CROSS = "EncDecAttention"


class MeshTensorFlowDialect(Dialect):
    """Weights [in, out], layers numbered in three digits; norms are ``layer_norm``, in newer versions ``rms_norm``."""

    name = "mesh-tensorflow"
    layout = "tensorflow"
    needs_vocabularies = False
    keeps_slots = True

    def recognise(self, checkpoint: Checkpoint) -> bool:
        first = f"encoder/block_000/layer_000/{_ATTENTION}/q"
        return checkpoint.format == "tensorflow" and {_EMBEDDING, first} <= set(checkpoint.entries)

    # what both directions share

    def rules(self, config: T5Config) -> list[Rule]:
        c = config
        rules = [rule(_EMBEDDING, EMBEDDING)]
        if has_output(c):
            rules.append(rule(_OUTPUT, "decoder.output.weight", Transpose()))
        for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
            rules += _norm(f"{side}/{{}}/scale", f"{side}.norm.weight", ("final_layer_norm", "rms_norm"))
            for i in range(layers):
                rules += self._layer(c, side, i)
        return rules

    def _layer(self, c: T5Config, side: str, i: int) -> Iterator[Rule]:
        block, ours = f"{side}/block_{i:03d}", f"{side}.layers.{i}"
        blocks = {"self_attention": _ATTENTION, "cross_attention": _CROSS, "ffn": "DenseReluDense"}
        if side == "encoder":
            del blocks["cross_attention"]
        bias = {"shared": f"{side}.position_bias", "per_layer": f"{ours}.self_attention.position_bias"}
        if c.position_bias == "per_layer" or i == 0:
            yield rule(f"{block}/layer_000/{_BIAS}", f"{bias[c.position_bias]}.weight", Transpose())
        inner = {"wi_0": "gate", "wi_1": "up"} if c.gated else {"wi": "up"}
        for k, (part, name) in enumerate(blocks.items()):
            layer = f"{block}/layer_{k:03d}"
            yield from _norm(f"{layer}/{{}}/scale", f"{ours}.{part}_norm.weight", ("layer_norm", "rms_norm"))
            leaves = {f"{w}/kernel": p for w, p in {**inner, "wo": "down"}.items()} if part == "ffn" else _LETTERS
            for leaf, what in leaves.items():
                yield rule(f"{layer}/{name}/{leaf}", f"{ours}.{part}.{what}.weight", Transpose())

    # what is read

    def read_config(self, checkpoint: Checkpoint) -> T5Config:
        file, gin = gin_beside(checkpoint.path, (GIN,), scopes=True)
        names = list(checkpoint.entries)
        layers = {side: count_layers(names, f"{side}/block_{{i}}") for side in ("encoder", "decoder")}
        shapes = Shapes(checkpoint.path, {n: e.shape for n, e in checkpoint.entries.items()}, layers)
        first = "encoder/block_000"
        per_layer = any(f"{s}/block_001/layer_000/{_BIAS}" in checkpoint.entries for s in ("encoder", "decoder"))
        config = shapes.config(
            "mesh-tensorflow",
            embedding=_EMBEDDING,
            output=_OUTPUT,
            biases=[f"{side}/block_000/layer_000/{_BIAS}" for side in ("encoder", "decoder")],
            query=f"{first}/layer_000/{_ATTENTION}/q",
            inner=[f"{first}/layer_001/DenseReluDense/{name}/kernel" for name in ("wi", "wi_0", "wi_1")],
            position_bias="per_layer" if per_layer else "shared",
            activation=gin.get("DenseReluDense.activation"),
            dropout=gin.get("DenseReluDense.dropout_rate", gin.get("dropout_rate")),
        )
        said = [(key, ours) for key, ours in _SAID.items() if isinstance(gin.get(key), int)]
        problems = [
            Problem(f"{key} is {gin[key]}, but the arrays say {getattr(config, ours)}")
            for key, ours in said
            if gin[key] != getattr(config, ours)
        ]
        if problems:
            raise DialectError("this mesh-tensorflow model is not what its gin says", where=file, problems=problems)
        return config

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        return read_vocabulary(checkpoint, files, checkpoint.entries[_EMBEDDING].shape[0])

    # what is written

    def header(self, config: T5Config, facts: Facts) -> Mapping[str, str]:
        return {"step": str(facts.step)}

    def files(self, config: T5Config, vocabularies: Mapping[str, Vocabulary], facts: Facts) -> Mapping[str, bytes]:
        c = config
        activations = activations_of(c, "mesh-tensorflow")
        bindings: dict[str, Any] = {
            "d_ff": c.d_ff, "d_kv": c.d_kv, "d_model": c.d_model, "dropout_rate": c.dropout, "num_heads": c.num_heads,
            "encoder/num_layers": c.encoder_layers, "decoder/num_layers": c.decoder_layers,
            "DenseReluDense.activation": activations[0] if len(activations) == 1 else list(activations),
            "DenseReluDense.dropout_rate": c.dropout,
        }  # fmt: skip
        return {GIN: gin_text(bindings), **vocabulary_files(vocabularies)}


# Macros, and bindings of the stacks of layers. ``num_layers`` alone is a macro of both sides, or of one of several.
_SAID = {
    "d_model": "d_model", "d_ff": "d_ff", "d_kv": "d_kv", "num_heads": "num_heads",
    **{f"{side}/{name}": f"{side}_layers" for side in ("encoder", "decoder")
       for name in ("num_layers", "make_layer_stack.num_layers")},
}  # fmt: skip
_LETTERS = {"q": "query", "k": "key", "v": "value", "o": "output"}


def _norm(template: str, canonical: str, names: tuple[str, str]) -> list[Rule]:
    op: Op = Identity()
    return [rule(template.format(name), canonical, op, alternative=k > 0) for k, name in enumerate(names)]
