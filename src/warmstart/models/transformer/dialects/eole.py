"""How EOLE, OpenNMT-py's successor, spells the encoder-decoder Transformer: a directory of config.json, vocab.json and
``model.00.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from warmstart.errors import DialectError, Problem, VocabularyError, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.family import Dialect
from warmstart.models.huggingface import CONFIG, folder_of, read_json
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.dialects.torch_files import given_vocabularies, layers_as_said, layers_of, require
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Reshape
from warmstart.vocabularies.tokens import TokenVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

ACTIVATIONS = {"relu": "relu", "gelu": "gelu_erf", "fast_gelu": "gelu_tanh", "gated-silu": "swish"}
VOCABULARY = "vocab.json"
_SIDES = {"encoder": "encoder.transformer_layers.{i}", "decoder": "decoder.transformer_layers.{i}"}
_EMBEDDINGS = {"encoder": "src_emb", "decoder": "tgt_emb"}
_TABLE = "src_emb.pe.pe"
_DISTANCES = "{layer}.self_attn.relative_positions_embeddings.weight"

# What the model's part of config.json, or its encoder's and decoder's, must say; the first value is EOLE's default.
ALLOWED: dict[str, tuple[object, ...]] = {
    "encoder_type": ("transformer",),
    "decoder_type": ("transformer",),
    "layer_norm": ("standard", "standardFP32", "rms"),
    "encoder_layer_style": ("standard",),
    "final_encoder_layer_norm": (True,),
    "position_encoding_type": ("SinusoidalInterleaved", "SinusoidalConcat", "Relative"),
    "embedding_type": ("standard",),
    "embedding_layer_norm": (False,),
    "normalize": (False, None),
    "token_type_vocab_size": (0,),
    "sliding_window": (0,),
    "relative_positions_buckets": (0,),
    "parallel_residual": (False,),
    "shared_layer_norm": (False,),
    "ffn_layernorm": (False,),
    "query_norm": (False,),
    "key_norm": (False,),
    "value_norm": (False,),
    "q_gating": (False,),
    "num_experts": (0,),
    "coverage_attn": (False,),
    "heads_kv": (None, 0),
    "head_dim": (None,),
    "attn_scaling": (None,),
}


class EoleDialect(Dialect):
    """Weights [out, in]; layers before their norms, a norm on top; what is tied is saved once."""

    name = "eole"

    def recognise(self, checkpoint: Checkpoint) -> bool:
        folder = folder_of(checkpoint)
        beside = [(folder / name).is_file() for name in (CONFIG, VOCABULARY)]
        return checkpoint.format == "safetensors" and all(beside) and "src_emb.embeddings.weight" in checkpoint.entries

    def read_config(self, checkpoint: Checkpoint) -> TransformerConfig:
        folder, entries = folder_of(checkpoint), checkpoint.entries
        options = EoleOptions(folder, ALLOWED)
        problems, said = options.problems, options.said

        activation = str(said("mlp_activation_fn", "relu"))
        if activation not in ACTIVATIONS:
            problems.append(Problem(f"mlp_activation_fn: {activation!r} is not supported"))
        heads = [said("heads", 8, side) for side in _SIDES]
        kv = [said("heads_kv", None, side) for side in _SIDES]
        if heads[0] != heads[1]:
            problems.append(Problem("encoder and decoder have another number of heads", found=f"{heads}"))
        problems += [Problem(f"heads_kv: {n} is not supported") for n in kv if n not in (None, 0, *heads)]
        rms = [said("layer_norm", "standard", side) == "rms" for side in _SIDES]
        if rms[0] != rms[1]:
            problems.append(Problem("one of encoder and decoder has RMS norms, the other has not"))
        layers = {side: layers_of(entries, template, problems) for side, template in _SIDES.items()}
        problems += layers_as_said({side: said("layers", None, side) for side in _SIDES}, layers)
        biases = {name.rpartition(".")[0] for name in entries if name.endswith(".bias")}
        first = _SIDES["encoder"].format(i=0)
        attention = [f"{first}.self_attn.{part}" in biases for part in ("linear_query", "linear_keys", "final_linear")]
        if len(set(attention)) > 1:
            problems.append(Problem("some of the attention's linear layers have biases, some have none"))
        needed = [_SIDES[side].format(i=0) + ".mlp.gate_up_proj.weight" for side in _SIDES]
        relative = options.positions() == "Relative"
        positions = _DISTANCES.format(layer=first) if relative else _TABLE
        problems += [Problem(f"{name} is missing") for name in (*needed, positions) if name not in entries]
        start = {"<s>": "bos", "</s>": "eos", "": "given"}.get(
            read_json(folder / VOCABULARY).get("decoder_start_token", "<s>")
        )
        if start is None:
            problems.append(Problem("decoder_start_token is neither the start nor the end token"))
        if problems:
            raise DialectError("this EOLE model is not supported", where=folder / CONFIG, problems=problems)
        source = entries["src_emb.embeddings.weight"].shape
        target = entries.get("tgt_emb.embeddings.weight")
        inner, decoder_inner = (entries[name].shape[0] for name in needed)
        shared, output = target is None, "generator.weight" not in entries
        aligned = bool(said("lambda_align", 0))
        rows = entries[positions].shape[0]
        try:
            return TransformerConfig.model_validate(
                {
                    "source_vocab_size": source[0],
                    "target_vocab_size": source[0] if target is None else target.shape[0],
                    "d_model": source[1],
                    "num_heads": heads[1],
                    "d_ff": inner,
                    "decoder_d_ff": None if inner == decoder_inner else decoder_inner,
                    "encoder_layers": layers["encoder"],
                    "decoder_layers": layers["decoder"],
                    "activation": ACTIVATIONS[activation],
                    "gated": activation.startswith("gated-"),
                    "norm": "pre",
                    "rms_norm": rms[0],
                    "tied_embeddings": {(True, True): "all", (True, False): "inputs", (False, True): "target"}.get(
                        (shared, output), "none"
                    ),
                    "output_bias": "generator" in biases,
                    "attention_bias": attention[0],
                    "ffn_bias": f"{first}.mlp.gate_up_proj" in biases,
                    **(_distances(said("n_positions", None, "embeddings"), rows) if relative else _table(rows)),
                    "decoder_start": start,
                    "source_eos": False,
                    "alignment_layer": said("alignment_layer", -1) if aligned else -1,
                    "alignment_heads": said("alignment_heads", 1) if aligned else 1,
                    "layer_norm_epsilon": said("norm_eps", 1e-5),
                }
            )
        except ValidationError as error:
            problems = validation_problems(error)
            raise DialectError("the model's options are wrong", where=folder / CONFIG, problems=problems) from None

    def rules(self, config: TransformerConfig) -> list[Rule]:
        c = config
        require(
            c, "EOLE", norm=("pre",), normalize_keys=(True,), positions=("learned", "relative"),
            positions_per_side=(False,), layernorm_embedding=(False,), features=((),),
            scale_embeddings=(c.positions == "learned",), relative_scaled=(c.positions == "learned",),
        )  # fmt: skip
        tied = {"decoder": c.tied_embeddings in ("all", "inputs"), "encoder": False}
        rules = [
            rule("generator.weight", "decoder.output.weight", alternative=c.tied_embeddings in ("all", "target")),
        ]
        if c.output_bias:
            rules.append(rule("generator.bias", "decoder.output.bias"))
        for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
            place = _EMBEDDINGS[side]
            rules.append(rule(f"{place}.embeddings.weight", f"{side}.embedding.weight", alternative=tied[side]))
            if c.positions == "learned":
                table = Reshape((-1, 1, c.d_model), (-1, c.d_model))
                rules.append(rule(f"{place}.pe.pe", "positions.weight", table, copy=side == "decoder"))
            rules += _both(f"{side}.layer_norm", f"{side}.norm", {}, not c.rms_norm)
            rules += _layer(c, side, {"i": layers})
        return rules

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        if files:
            return given_vocabularies(files)
        folder = folder_of(checkpoint)
        special, tables = special_tokens(folder), {}
        for side, tokens in (("source", tokens_of(folder, "src")), ("target", tokens_of(folder, "tgt"))):
            eos = special["eos"] if special["eos"] in tokens or side == "target" else None
            tables[side] = TokenVocabulary(tokens, eos, special["unk"], bos=special["bos"], pad=special["pad"])
        return dict(tables)


class EoleOptions:
    """What config.json in ``folder`` says of a model, in its part ``model`` and the parts in that.

    ``problems`` begins with every option that has none of the values of ``allowed``.
    """

    def __init__(self, folder: Path, allowed: Mapping[str, tuple[object, ...]]) -> None:
        self.where = folder / CONFIG
        model = read_json(self.where).get("model")
        if not isinstance(model, Mapping):
            raise DialectError("config.json describes no model", where=self.where, expected="a part `model`")
        self.parts = {"model": model, **{k: model.get(k) or {} for k in ("encoder", "decoder", "embeddings")}}
        self.problems = [
            Problem(f"{place}.{key}: {part[key]!r} is not supported", expected=" or ".join(map(repr, values)))
            for place, part in self.parts.items()
            for key, values in allowed.items()
            if key in part and part[key] not in values
        ]

    def said(self, key: str, default: Any, place: str = "decoder") -> Any:
        """An option of ``place``, which may stand in the whole model's part, too."""
        return self.parts[place].get(key, self.parts["model"].get(key, default))

    def positions(self) -> object:
        """The type of positions; that the parts say several is a problem."""
        key = "position_encoding_type"
        kinds = {part[key] for part in self.parts.values() if key in part}
        if len(kinds) > 1:
            self.problems.append(Problem(f"{key} differs: {', '.join(sorted(map(repr, kinds)))}"))
        return next(iter(kinds), "SinusoidalInterleaved")


def special_tokens(folder: Path) -> dict[str, str]:
    """Role → token, as vocab.json says or EOLE takes them."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<blank>"}
    special |= read_json(folder / VOCABULARY).get("specials") or {}
    return {role: special[f"{role}_token"] for role in ("bos", "eos", "unk", "pad")}


def tokens_of(folder: Path, side: str) -> list[str]:
    """The table ``src`` or ``tgt`` of vocab.json."""
    tokens = read_json(folder / VOCABULARY).get(side)
    if not isinstance(tokens, list):
        name = {"src": "source", "tgt": "target"}[side]
        raise VocabularyError(f"{VOCABULARY} holds no {name} vocabulary", where=folder)
    return tokens


def _table(rows: int) -> dict[str, Any]:
    return {"positions": "learned", "max_positions": rows}


def _distances(said: int | None, rows: int) -> dict[str, Any]:
    """Vectors of distances are added to scores as they are, and embeddings are not scaled then
    (``eole/modules/multi_headed_attn.py``)."""
    return {
        "positions": "relative", "max_relative_positions": (rows - 1) // 2 if said is None else said,
        "relative_tables": "one", "relative_scaled": False, "scale_embeddings": False,
    }  # fmt: skip


def _layer(c: TransformerConfig, side: str, each: Mapping[str, int]) -> list[Rule]:
    theirs, ours = _SIDES[side], f"{side}.layers.{{i}}"
    attentions = [("self_attn", "self_attention", "input_layernorm")]
    if side == "decoder":
        attentions.append(("context_attn", "cross_attention", "precontext_layernorm"))
    rules: list[Rule] = []
    names = (("linear_query", "query"), ("linear_keys", "key"), ("linear_values", "value"), ("final_linear", "output"))
    for short, attention, norm in attentions:
        for linear, part in names:
            rules += _both(f"{theirs}.{short}.{linear}", f"{ours}.{attention}.{part}", each, c.attention_bias)
        rules += _both(f"{theirs}.{norm}", f"{ours}.{attention}_norm", each, not c.rms_norm)
    if c.positions == "relative":
        rules.append(rule(_DISTANCES.format(layer=theirs), f"{ours}.self_attention.relative_keys", each=each))
    rules += _both(f"{theirs}.mlp.gate_up_proj", f"{ours}.ffn.{'gate' if c.gated else 'up'}", each, c.ffn_bias)
    if c.gated:
        rules += _both(f"{theirs}.mlp.up_proj", f"{ours}.ffn.up", each, c.ffn_bias)
    rules += _both(f"{theirs}.mlp.down_proj", f"{ours}.ffn.down", each, c.ffn_bias)
    return rules + _both(f"{theirs}.post_attention_layernorm", f"{ours}.ffn_norm", each, not c.rms_norm)


def _both(theirs: str, ours: str, each: Mapping[str, int], bias: bool = True) -> list[Rule]:
    return [rule(f"{theirs}.{what}", f"{ours}.{what}", each=each) for what in ("weight", "bias")[: 1 + bias]]
