"""How T5X spells T5 (``t5x/examples/t5`` and ``t5x/examples/scalable_t5``).

Kernels are [in, out], and layers are apart (``layers_0``), or stacked along axis 1 of every array by a scan
(``encoder/encoder``). Heads are joined (``joined_kv``), or an axis of their own where the scan is. Queries are not
scaled in the computation: the initialiser did it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from warmstart.errors import DialectError, Problem
from warmstart.formats.checkpoint import Checkpoint
from warmstart.lean import dataclass
from warmstart.models.family import Dialect, Facts
from warmstart.models.t5.config import T5Config
from warmstart.models.t5.dialects.google import (
    Shapes,
    activations_of,
    as_dict,
    count_layers,
    has_output,
    read_vocabulary,
    vocabulary_files,
)
from warmstart.models.t5.gin import gin_beside, gin_text
from warmstart.models.t5.parameters import EMBEDDING
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.op import Op
from warmstart.spec.ops import Chain, Identity, Reshape, Transpose, Unstack
from warmstart.vocabularies.vocabulary import Vocabulary

GIN = "model.gin"
_EMBEDDING, _OUTPUT = "target/token_embedder/embedding", "target/decoder/logits_dense/kernel"
_BIAS = "relpos_bias/rel_embedding"
_IGNORED = {
    "dtype", "float32_attention_logits", "remat_policy", "scan_layers", "param_scan_axis", "decode",
}  # fmt: skip


@dataclass(frozen=True)
class T5XDialect(Dialect):
    """T5X's parameters. ``scanned`` stacks layers, ``split`` keeps heads and their width as two axes."""

    name: str = "t5x"
    scanned: bool = False
    split: bool = False
    layout: str = "t5x"
    needs_vocabularies: bool = False
    keeps_slots: bool = True

    def recognise(self, checkpoint: Checkpoint) -> bool:
        entries = checkpoint.entries
        if checkpoint.format not in ("t5x", "orbax", "flax") or _EMBEDDING not in entries:
            return False
        scanned = "target/encoder/encoder/attention/query/kernel"
        query = entries.get(scanned) or entries.get("target/encoder/layers_0/attention/query/kernel")
        if query is None or self.scanned != (scanned in entries):
            return False
        return len(query.shape) == 2 + self.scanned + self.split

    # what both directions share

    def rules(self, config: T5Config) -> list[Rule]:
        c = config
        rules = [rule(_EMBEDDING, EMBEDDING)]
        if has_output(c):
            rules.append(rule(_OUTPUT, "decoder.output.weight", Transpose()))
        for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
            rules.append(rule(f"target/{side}/{side}_norm/scale", f"{side}.norm.weight"))
            if c.position_bias == "shared":
                rules.append(rule(f"target/{side}/{_BIAS}", f"{side}.position_bias.weight", Transpose()))
            rules += self._layer(c, side, layers)
        return rules

    def _layer(self, c: T5Config, side: str, layers: int) -> list[Rule]:
        theirs = f"target/{side}/{side}" if self.scanned else f"target/{side}/layers_{{i}}"
        ours = f"{side}.layers.{{i}}"

        def one(name: str, canonical: str, *ops: Op) -> Rule:
            steps = (*((Unstack(layers, 1),) if self.scanned else ()), *ops)
            op: Op = Chain(steps) if len(steps) > 1 else steps[0] if steps else Identity()
            many = {"i": layers}
            names = f"{theirs}/{name}", f"{ours}.{canonical}.weight"
            return rule(*names, op, gather=many) if self.scanned else rule(*names, op, each=many)

        into = (Reshape((c.d_model, c.num_heads, c.d_kv), (c.d_model, c.inner)),) if self.split else ()
        out = (Reshape((c.num_heads, c.d_kv, c.d_model), (c.inner, c.d_model)),) if self.split else ()
        attentions = {"self_attention": "attention"}
        if side == "decoder":
            attentions = {"self_attention": "self_attention", "cross_attention": "encoder_decoder_attention"}
        rules: list[Rule] = []
        for attention, name in attentions.items():
            rules += [one(f"{name}/{p}/kernel", f"{attention}.{p}", *into, Transpose()) for p in _INTO]
            rules.append(one(f"{name}/out/kernel", f"{attention}.output", *out, Transpose()))
        if c.position_bias == "per_layer":
            rules.append(one(_BIAS, "self_attention.position_bias", Transpose()))
        for norm, name in _NORMS[side].items():
            rules.append(one(f"{name}/scale", norm))
        inner = {"wi_0": "gate", "wi_1": "up"} if c.gated else {"wi": "up"}
        rules += [
            one(f"mlp/{name}/kernel", f"ffn.{part}", Transpose()) for name, part in {**inner, "wo": "down"}.items()
        ]
        return rules

    # what is read

    def read_config(self, checkpoint: Checkpoint) -> T5Config:
        file, gin = gin_beside(checkpoint.path, (GIN, "config.gin"))
        said = as_dict(gin, "T5Config")
        shapes = self._shapes(checkpoint)
        first = "target/encoder/layers_0"
        shared = f"target/encoder/{_BIAS}" in shapes.shapes
        of_side = "target/{}/" + _BIAS if shared else "target/{}/layers_0/" + _BIAS
        config = shapes.config(
            "T5X",
            embedding=_EMBEDDING,
            output=_OUTPUT,
            biases=[of_side.format(side) for side in ("encoder", "decoder")],
            query=f"{first}/attention/query/kernel",
            inner=[f"{first}/mlp/{name}/kernel" for name in ("wi", "wi_0", "wi_1")],
            position_bias="shared" if shared else "per_layer",
            activation=said.pop("mlp_activations", None),
            dropout=said.pop("dropout_rate", None),
        )
        problems = [
            Problem(f"{key} is {value!r}, but the arrays say {getattr(config, _SAID[key])!r}")
            for key, value in said.items()
            if key in _SAID and value != getattr(config, _SAID[key])
        ]
        problems += [
            Problem(f"{key}: {value!r} is not an option that is known here")
            for key, value in said.items()
            if key not in _SAID and key not in _IGNORED
        ]
        if problems:
            raise DialectError("this T5X model is not supported", where=file, problems=problems)
        return config

    def _shapes(self, checkpoint: Checkpoint) -> Shapes:
        names = list(checkpoint.entries)
        if not self.scanned:
            layers = {s: count_layers(names, f"target/{s}/layers_{{i}}") for s in ("encoder", "decoder")}
        else:
            norms = {s: f"target/{s}/{s}/{next(iter(_NORMS[s].values()))}/scale" for s in ("encoder", "decoder")}
            layers = {s: e.shape[-1] if (e := checkpoint.entries.get(n)) and e.shape else 0 for s, n in norms.items()}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, entry in checkpoint.entries.items():
            side, shape = name.removeprefix("target/").partition("/")[0], entry.shape
            stacked = f"target/{side}/{side}/"
            own = name
            if self.scanned and name.startswith(stacked):
                own, shape = name.replace(stacked, f"target/{side}/layers_0/", 1), (*shape[:1], *shape[2:])
            if self.split and len(shape) == 3 and name.endswith("/query/kernel"):
                shape = (shape[0], shape[1] * shape[2])
            shapes[own] = shape
        return Shapes(checkpoint.path, shapes, layers)

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        return read_vocabulary(checkpoint, files, checkpoint.entries[_EMBEDDING].shape[0])

    # what is written

    def header(self, config: T5Config, facts: Facts) -> Mapping[str, str]:
        return {"step": str(facts.step)}

    def files(self, config: T5Config, vocabularies: Mapping[str, Vocabulary], facts: Facts) -> Mapping[str, bytes]:
        c = config
        activations = activations_of(c, "T5X")
        if self.scanned and c.position_bias == "shared":
            raise DialectError(
                "T5X's scanned network has a position bias for each layer, and this model one for all",
                todo="use --to t5x",
            )
        bindings: dict[str, Any] = {f"network.T5Config.{key}": getattr(c, ours) for key, ours in _SAID.items()}
        bindings |= {"network.T5Config.mlp_activations": activations, "network.T5Config.dropout_rate": c.dropout}
        bindings["network.T5Config.logits_via_embedding"] = not has_output(c)
        if self.scanned:
            bindings |= {"network.T5Config.scan_layers": True, "network.T5Config.param_scan_axis": 1}
        package = "scalable_t5" if self.scanned else "t5"
        imports = ("from __gin__ import dynamic_registration", f"from t5x.examples.{package} import network")
        return {GIN: gin_text(dict(sorted(bindings.items())), imports), **vocabulary_files(vocabularies)}


_INTO = ("query", "key", "value")
_NORMS = {
    "encoder": {"self_attention_norm": "pre_attention_layer_norm", "ffn_norm": "pre_mlp_layer_norm"},
    "decoder": {
        "self_attention_norm": "pre_self_attention_layer_norm",
        "cross_attention_norm": "pre_cross_attention_layer_norm",
        "ffn_norm": "pre_mlp_layer_norm",
    },
}
_SAID = {
    "vocab_size": "vocab_size", "emb_dim": "d_model", "num_heads": "num_heads", "head_dim": "d_kv", "mlp_dim": "d_ff",
    "num_encoder_layers": "encoder_layers", "num_decoder_layers": "decoder_layers",
    "logits_via_embedding": "tied_output",
}  # fmt: skip
