"""How EOLE, OpenNMT-py's successor, spells the encoder-decoder Transformer: a directory of config.json, vocab.json and
``model.00.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from warmstart.checked import Invalid
from warmstart.errors import DialectError, Problem, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.checks import given_vocabularies, layers_as_said, layers_of, not_tables, require
from warmstart.models.eole import (
    ACTIVATIONS,
    ALLOWED,
    DISTANCES,
    VOCABULARY,
    EoleOptions,
    is_eole,
    special_tokens,
    tokens_of,
)
from warmstart.models.family import Dialect
from warmstart.models.huggingface import CONFIG, folder_of, read_json
from warmstart.models.transformer.config import TransformerConfig
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Reshape
from warmstart.vocabularies.tokens import TokenVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

_SIDES = {"encoder": "encoder.transformer_layers.{i}", "decoder": "decoder.transformer_layers.{i}"}
_EMBEDDINGS = {"encoder": "src_emb", "decoder": "tgt_emb"}
_TABLE = "src_emb.pe.pe"

_ALLOWED: Mapping[str, tuple[object, ...]] = {
    **ALLOWED,
    "encoder_type": ("transformer",),
    "decoder_type": ("transformer",),
    "position_encoding_type": ("SinusoidalInterleaved", "SinusoidalConcat", "Relative"),
    "sliding_window": (0,),
    "heads_kv": (None, 0),
    "head_dim": (None,),
}


class EoleDialect(Dialect):
    """Weights [out, in]; layers before their norms, a norm on top; what is tied is saved once."""

    name = "eole"

    def recognise(self, checkpoint: Checkpoint) -> bool:
        return is_eole(checkpoint) and "src_emb.embeddings.weight" in checkpoint.entries

    def read_config(self, checkpoint: Checkpoint) -> TransformerConfig:
        folder, entries = folder_of(checkpoint), checkpoint.entries
        options = EoleOptions(folder, _ALLOWED)
        problems, said = options.problems, options.said
        activation = str(said("mlp_activation_fn", "relu"))
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
        positions = f"{first}.{DISTANCES}.weight" if relative else _TABLE
        words = ("src_emb.embeddings.weight", *({"tgt_emb.embeddings.weight"} & set(entries)))
        problems += not_tables(entries, (*words, *needed, positions))
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
        except Invalid as error:
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
        rules.append(rule(f"{theirs}.{DISTANCES}.weight", f"{ours}.self_attention.relative_keys", each=each))
    rules += _both(f"{theirs}.mlp.gate_up_proj", f"{ours}.ffn.{'gate' if c.gated else 'up'}", each, c.ffn_bias)
    if c.gated:
        rules += _both(f"{theirs}.mlp.up_proj", f"{ours}.ffn.up", each, c.ffn_bias)
    rules += _both(f"{theirs}.mlp.down_proj", f"{ours}.ffn.down", each, c.ffn_bias)
    return rules + _both(f"{theirs}.post_attention_layernorm", f"{ours}.ffn_norm", each, not c.rms_norm)


def _both(theirs: str, ours: str, each: Mapping[str, int], bias: bool = True) -> list[Rule]:
    return [rule(f"{theirs}.{what}", f"{ours}.{what}", each=each) for what in ("weight", "bias")[: 1 + bias]]
