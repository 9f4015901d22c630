"""How OpenNMT-py spells the encoder-decoder Transformer, in its ``.pt`` files of versions 0.9 to 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from warmstart.checked import Invalid
from warmstart.errors import DialectError, Problem, validation_problems
from warmstart.formats.checkpoint import Checkpoint, Entry
from warmstart.models.checks import given_vocabularies, layers_as_said, layers_of, not_allowed, not_tables, require
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
from warmstart.models.transformer.config import TransformerConfig
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Reshape
from warmstart.vocabularies.tokens import TokenVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

_SIDES = {"encoder": "model.encoder.transformer.{i}", "decoder": "model.decoder.transformer_layers.{i}"}
_EMBEDDING = "model.{side}.embeddings.make_embedding"

_ALLOWED: Mapping[str, tuple[object, ...]] = {
    **ALLOWED,
    "encoder_type": ("transformer",),
    "decoder_type": ("transformer",),
    "multiquery": (False,),
    "num_kv": (0,),
    "sliding_window": (0,),
    "model_task": ("seq2seq", None),
}


class OpenNMTPyDialect(OpenNMTPy):
    """Weights [out, in]; layers before their norms, a norm on top; positions as a table in the file."""

    def recognise(self, checkpoint: Checkpoint) -> bool:
        opt = options_of(checkpoint)
        sides = [opt.get(f"{side}_type") for side in _SIDES]
        return "transformer" in sides and "vocab" in checkpoint.metadata

    def why_not(self, checkpoint: Checkpoint) -> str | None:
        opt = options_of(checkpoint)
        if "encoder_type" not in opt:
            return None
        sides = {side: str(opt.get(f"{side}_type")) for side in _SIDES}
        if "transformer" in sides.values():
            return None
        recurrent = any(kind in ("rnn", "brnn") for kind in sides.values())
        cells = f" of {opt.get('rnn_type', 'LSTM')} cells" if recurrent else ""
        kinds = " and ".join(f"{side} of type {kind}" for side, kind in sides.items())
        return f"{kinds}{cells}; CTranslate2 has no such models, and no family here is one of them"

    def read_config(self, checkpoint: Checkpoint) -> TransformerConfig:
        opt, entries = options_of(checkpoint), checkpoint.entries
        problems = not_allowed(opt, _ALLOWED)
        kind = positions_of(opt, ("learned", "relative"), problems)
        tables_of_features = _features(entries)
        merge = str(opt.get("feat_merge", "concat"))
        if tables_of_features and merge not in ("concat", "sum"):
            problems.append(Problem(f"feat_merge: {merge!r} is not supported", expected="'concat' or 'sum'"))
        tables = {side: f"{_EMBEDDING.format(side=side)}.emb_luts.0.weight" for side in _SIDES}
        needed = [*tables.values(), *(_SIDES[side].format(i=0) + ".feed_forward.w_1.weight" for side in _SIDES)]
        problems += not_tables(entries, needed)
        layers = {side: layers_of(entries, template, problems) for side, template in _SIDES.items()}
        problems += layers_as_said(layers_said(opt), layers)
        aligned = bool(opt.get("lambda_align"))
        start = {"<s>": "bos", "</s>": "eos", "": "given"}.get(str(opt.get("decoder_start_token", "<s>")))
        if start is None:
            problems.append(Problem(f"decoder_start_token: {opt['decoder_start_token']!r} is not supported"))
        if problems:
            raise DialectError("this OpenNMT-py model is not supported", where=checkpoint.path, problems=problems)
        source, target = (entries[tables[side]].shape for side in _SIDES)
        inner, decoder_inner = (entries[name].shape[0] for name in needed[2:])
        gated = f"{_SIDES['encoder'].format(i=0)}.feed_forward.w_3.weight" in entries
        pe = entries.get(f"{_EMBEDDING.format(side='encoder')}.pe.pe")
        biases = {name.rpartition(".")[0] for name in entries if name.endswith(".bias")}
        try:
            return TransformerConfig.model_validate(
                {
                    "source_vocab_size": source[0],
                    "target_vocab_size": target[0],
                    "d_model": target[1],
                    "num_heads": opt.get("heads", 8),
                    "d_ff": inner,
                    "decoder_d_ff": None if inner == decoder_inner else decoder_inner,
                    "encoder_layers": layers["encoder"],
                    "decoder_layers": layers["decoder"],
                    "activation": ACTIVATIONS[opt.get("pos_ffn_activation_fn", "relu")],
                    "norm": "pre",
                    "rms_norm": opt.get("layer_norm") == "rms",
                    "tied_embeddings": _ties(opt),
                    "output_bias": bool({"generator", "generator.0"} & biases),
                    "attention_bias": _SIDES["encoder"].format(i=0) + ".self_attn.linear_query" in biases,
                    "ffn_bias": _SIDES["encoder"].format(i=0) + ".feed_forward.w_1" in biases,
                    **_positions(kind, opt, pe.shape[0] if pe and pe.shape else None),
                    "gated": gated,
                    "features": tables_of_features,
                    "feature_merge": merge if tables_of_features else "concat",
                    "decoder_start": start,
                    "source_eos": False,
                    "alignment_layer": opt.get("alignment_layer", -1) if aligned else -1,
                    "alignment_heads": opt.get("alignment_heads", 1) if aligned else 1,
                    "layer_norm_epsilon": opt.get("norm_eps", EPSILON),
                    **_dropout(opt),
                }
            )
        except Invalid as error:
            problems = validation_problems(error)
            raise DialectError("the model's options are wrong", where=checkpoint.path, problems=problems) from None

    def rules(self, config: TransformerConfig) -> list[Rule]:
        c = config
        require(
            c, "OpenNMT-py", norm=("pre",), normalize_keys=(True,), positions=("learned", "relative"),
            positions_per_side=(False,), layernorm_embedding=(False,), scale_embeddings=(c.positions == "learned",),
            relative_tables=("one",) if c.positions == "relative" else (c.relative_tables,), relative_scaled=(True,),
            tied_features=(False,),
        )  # fmt: skip
        rules = [
            rule(f"{_EMBEDDING.format(side='encoder')}.emb_luts.{k + 1}.weight", f"encoder.features.{k}.weight")
            for k in range(len(c.features))
        ]
        for side in _SIDES:
            rules.append(rule(f"{_EMBEDDING.format(side=side)}.emb_luts.0.weight", f"{side}.embedding.weight"))
            table = Reshape((-1, 1, c.d_model), (-1, c.d_model))
            pe = f"{_EMBEDDING.format(side=side)}.pe.pe"
            if c.positions == "learned":
                rules.append(rule(pe, "positions.weight", table, copy=side == "decoder"))
            rules += _norm(c, f"model.{side}.layer_norm", f"{side}.norm", {})
        for what in ("weight", "bias")[: 1 + c.output_bias]:
            rules.append(rule(f"generator.{what}", f"decoder.output.{what}"))
            rules.append(rule(f"generator.0.{what}", f"decoder.output.{what}", alternative=True))
        for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
            rules += _layer(c, side, {"i": layers})
        return rules

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        if files:
            return given_vocabularies(files)
        tables = tables_of(checkpoint.metadata["vocab"], checkpoint.path)
        return {
            side: TokenVocabulary(tokens, "</s>" if "</s>" in tokens or side == "target" else None, pad="<blank>")
            for side, tokens in sorted(tables.items())
        }


def _layer(c: TransformerConfig, side: str, each: Mapping[str, int]) -> list[Rule]:
    theirs, ours = _SIDES[side], f"{side}.layers.{{i}}"
    attentions = [("self_attn", "self_attention", "layer_norm" if side == "encoder" else "layer_norm_1")]
    if side == "decoder":
        attentions.append(("context_attn", "cross_attention", "layer_norm_2"))
    rules: list[Rule] = []
    names = (("linear_query", "query"), ("linear_keys", "key"), ("linear_values", "value"), ("final_linear", "output"))
    for short, attention, norm in attentions:
        for linear, part in names:
            for what in ("weight", "bias")[: 1 + c.attention_bias]:
                rules.append(rule(f"{theirs}.{short}.{linear}.{what}", f"{ours}.{attention}.{part}.{what}", each=each))
        rules += _norm(c, f"{theirs}.{norm}", f"{ours}.{attention}_norm", each)
    if c.positions == "relative":
        table = f"{theirs}.self_attn.relative_positions_embeddings.weight"
        rules.append(rule(table, f"{ours}.self_attention.relative_keys", each=each))
    inner = (("w_1", "gate"), ("w_3", "up")) if c.gated else (("w_1", "up"),)
    for linear, part in (*inner, ("w_2", "down")):
        for what in ("weight", "bias")[: 1 + c.ffn_bias]:
            rules.append(rule(f"{theirs}.feed_forward.{linear}.{what}", f"{ours}.ffn.{part}.{what}", each=each))
    return rules + _norm(c, f"{theirs}.feed_forward.layer_norm", f"{ours}.ffn_norm", each)


def _norm(c: TransformerConfig, theirs: str, ours: str, each: Mapping[str, int]) -> list[Rule]:
    """Norms, also under the names that OpenNMT-py's own class gave them until 0.9."""
    parts = (("weight", ("weight", "a_2")), ("bias", ("bias", "b_2")))[: 2 - c.rms_norm]
    return [
        rule(f"{theirs}.{name}", f"{ours}.{part}", each=each, alternative=name in ("a_2", "b_2"))
        for part, names in parts
        for name in names
    ]


def _positions(kind: str, opt: Mapping[str, Any], rows: int | None) -> dict[str, Any]:
    """Embeddings are scaled with a table only (OpenNMT/OpenNMT-py, issue 1722)."""
    if kind == "learned":
        return {"positions": kind, "max_positions": rows, "scale_embeddings": True}
    relative = {"positions": kind, "max_relative_positions": opt["max_relative_positions"], "relative_tables": "one"}
    return {**relative, "scale_embeddings": False}


def _features(entries: Mapping[str, Entry]) -> tuple[tuple[int, ...], ...]:
    """Rows and width of each table of source features."""
    name = _EMBEDDING.format(side="encoder") + ".emb_luts.{k}.weight"
    found, k = [], 1
    while (entry := entries.get(name.format(k=k))) is not None:
        found.append(entry.shape)
        k += 1
    return tuple(found)


def _ties(opt: Mapping[str, Any]) -> str:
    output, inputs = bool(opt.get("share_decoder_embeddings")), bool(opt.get("share_embeddings"))
    return {(True, True): "all", (True, False): "target", (False, True): "inputs"}.get((output, inputs), "none")


def _dropout(opt: Mapping[str, Any]) -> dict[str, Any]:
    def first(key: str, default: Any) -> Any:
        value = opt.get(key, default)
        return value[0] if isinstance(value, list) and value else value or 0.0

    dropout = first("dropout", 0.1)
    return {"dropout": dropout, "attention_dropout": first("attention_dropout", dropout), "ffn_dropout": dropout}
