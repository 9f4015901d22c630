"""How OpenNMT-py spells the encoder-decoder Transformer, in its ``.pt`` files of versions 0.9 to 3.

``opt`` is an ``argparse.Namespace`` and the vocabulary, in older files, objects of torchtext: our reader of torch files
gives both as data, so nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from warmstart.errors import DialectError, Problem, VocabularyError, validation_problems
from warmstart.formats.checkpoint import Checkpoint, Entry
from warmstart.models.family import Dialect
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.dialects.torch_files import given_vocabularies, layers_as_said, layers_of, require
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Reshape
from warmstart.vocabularies.tokens import TokenVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

ACTIVATIONS = {"relu": "relu", "gelu": "gelu_erf", "fast_gelu": "gelu_tanh", "silu": "swish"}
EPSILON = 1e-6
_SIDES = {"encoder": "model.encoder.transformer.{i}", "decoder": "model.decoder.transformer_layers.{i}"}
_EMBEDDING = "model.{side}.embeddings.make_embedding"

LEFT_BEHIND = {
    "model.decoder.transformer_layers.*.mask": "the triangle that hides what follows",
    "optim.**": "the optimizer's",
}

# Options of the model that must be so; the first value is what a file that does not say it means.
ALLOWED: dict[str, tuple[object, ...]] = {
    "encoder_type": ("transformer",),
    "decoder_type": ("transformer",),
    "self_attn_type": ("scaled-dot", "scaled-dot-flash"),
    "relative_positions_buckets": (0,),
    "copy_attn": (False, None),
    "coverage_attn": (False, None),
    "generator_function": ("softmax", "log_softmax"),
    "layer_norm": ("standard", "rms"),
    "parallel_residual": (False,),
    "shared_layer_norm": (False,),
    "multiquery": (False,),
    "num_kv": (0,),
    "sliding_window": (0,),
    "num_experts": (0,),
    "model_type": ("text", None),
    "model_task": ("seq2seq", None),
    "update_vocab": (False,),
}


class OpenNMTPyDialect(Dialect):
    """Weights [out, in]; layers before their norms, a norm on top; positions as a table in the file."""

    name = "opennmt-py"

    def recognise(self, checkpoint: Checkpoint) -> bool:
        opt, found = checkpoint.metadata.get("opt"), checkpoint.metadata
        if checkpoint.format != "torch" or not isinstance(opt, Mapping) or "vocab" not in found:
            return False
        return opt.get("decoder_type") == "transformer" or opt.get("encoder_type") == "transformer"

    def why_not(self, checkpoint: Checkpoint) -> str | None:
        opt = checkpoint.metadata.get("opt")
        if checkpoint.format != "torch" or not isinstance(opt, Mapping) or "encoder_type" not in opt:
            return None
        sides = {side: str(opt.get(f"{side}_type")) for side in _SIDES}
        if "transformer" in sides.values():
            return None
        recurrent = any(kind in ("rnn", "brnn") for kind in sides.values())
        cells = f" of {opt.get('rnn_type', 'LSTM')} cells" if recurrent else ""
        kinds = " and ".join(f"{side} of type {kind}" for side, kind in sides.items())
        return f"{kinds}{cells}; CTranslate2 has no such models, and no family here is one of them"

    def left_behind(self, config: Any) -> Mapping[str, str]:
        return LEFT_BEHIND

    def read_config(self, checkpoint: Checkpoint) -> TransformerConfig:
        opt: Mapping[str, Any] = checkpoint.metadata["opt"]
        problems = not_allowed(opt, ALLOWED)
        activation = str(opt.get("pos_ffn_activation_fn", "relu"))
        if activation not in ACTIVATIONS:
            problems.append(Problem(f"pos_ffn_activation_fn: {activation!r} is not supported"))
        entries = checkpoint.entries
        problems += _position_problems(opt)
        tables_of_features = _features(entries)
        merge = str(opt.get("feat_merge", "concat"))
        if tables_of_features and merge not in ("concat", "sum"):
            problems.append(Problem(f"feat_merge: {merge!r} is not supported", expected="'concat' or 'sum'"))
        tables = {side: f"{_EMBEDDING.format(side=side)}.emb_luts.0.weight" for side in _SIDES}
        needed = [*tables.values(), *(_SIDES[side].format(i=0) + ".feed_forward.w_1.weight" for side in _SIDES)]
        problems += [Problem(f"{name} is missing") for name in needed if name not in entries]
        layers = {side: layers_of(entries, template, problems) for side, template in _SIDES.items()}
        both = opt.get("layers", -1)
        options = {"encoder": "enc_layers", "decoder": "dec_layers"}
        said = {side: opt.get(option) if both == -1 else both for side, option in options.items()}
        problems += layers_as_said(said, layers)
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
                    "activation": ACTIVATIONS[activation],
                    "norm": "pre",
                    "rms_norm": opt.get("layer_norm") == "rms",
                    "tied_embeddings": _ties(opt),
                    "output_bias": bool({"generator", "generator.0"} & biases),
                    "attention_bias": _SIDES["encoder"].format(i=0) + ".self_attn.linear_query" in biases,
                    "ffn_bias": _SIDES["encoder"].format(i=0) + ".feed_forward.w_1" in biases,
                    **_positions(opt, pe.shape[0] if pe else None),
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
        except ValidationError as error:
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


def not_allowed(opt: Mapping[str, Any], allowed: Mapping[str, tuple[object, ...]]) -> list[Problem]:
    """Every option that has none of the values of ``allowed``."""
    return [
        Problem(f"{key}: {opt[key]!r} is not supported", expected=" or ".join(map(repr, values)))
        for key, values in allowed.items()
        if key in opt and opt[key] not in values
    ]


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


def _position_problems(opt: Mapping[str, Any]) -> list[Problem]:
    distance, table = opt.get("max_relative_positions", 0), opt.get("position_encoding", True)
    if distance < 0:
        what = {-1: "rotary positions", -2: "ALiBi"}.get(distance, "such positions")
        return [Problem(f"max_relative_positions: {distance} ({what}) is not supported", expected="0 or more")]
    if bool(distance) == bool(table):
        return [Problem(f"max_relative_positions is {distance} and position_encoding {table}", expected="one of them")]
    return []


def _positions(opt: Mapping[str, Any], rows: int | None) -> dict[str, Any]:
    """A table, or vectors of distances; embeddings are scaled with a table only
    (OpenNMT/OpenNMT-py, issue 1722)."""
    distance = opt.get("max_relative_positions", 0)
    if not distance:
        return {"positions": "learned", "max_positions": rows, "scale_embeddings": True}
    relative = {"positions": "relative", "max_relative_positions": distance, "relative_tables": "one"}
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


def _dropout(opt: Mapping[str, Any]) -> dict[str, float]:
    def first(key: str, default: float) -> float:
        value = opt.get(key, default)
        return float(value[0] if isinstance(value, list) and value else value or 0.0)

    dropout = first("dropout", 0.1)
    return {"dropout": dropout, "attention_dropout": first("attention_dropout", dropout), "ffn_dropout": dropout}


def tables_of(vocab: Any, where: object) -> dict[str, list[str]]:
    """Tokens by side: plain lists (version 3), fields of torchtext (1 and 2), or its vocabularies (before)."""
    found: dict[str, Any] = {}
    if isinstance(vocab, Mapping) and "src" in vocab:
        for side, key in (("source", "src"), ("target", "tgt")):
            entry = vocab.get(key)
            if isinstance(entry, Mapping):
                fields = [field[1].get("vocab", {}).get("itos") for field in entry.get("fields") or [[key, entry]]]
                entry = fields[0]
                found |= {f"{side}_{k + 2}": table for k, table in enumerate(fields[1:])}
            found[side] = entry
        found |= {f"source_{k + 2}": table for k, table in enumerate((vocab.get("src_feats") or {}).values())}
    elif isinstance(vocab, list):
        by_name = {name: entry for name, entry in vocab if isinstance(entry, Mapping)}
        found = {side: by_name.get(key, {}).get("itos") for side, key in (("source", "src"), ("target", "tgt"))}
    wrong = [side for side in ("source", "target", *found) if not isinstance(found.get(side), list)]
    if wrong:
        raise VocabularyError(f"the file holds no {' and '.join(wrong)} vocabulary", where=where)
    return found
