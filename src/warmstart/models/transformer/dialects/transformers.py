"""How ``transformers`` spells the encoder-decoder Transformer: MarianMT, BART, mBART, Pegasus, M2M100 and NLLB.

Five classes of one layout, told apart by norms, positions and how the decoder starts (``Kind``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.checked import Invalid
from warmstart.errors import DialectError, VocabularyError, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.lean import dataclass
from warmstart.models.family import Facts
from warmstart.models.huggingface import CONFIG, GENERATION, HuggingfaceDialect, Loaded, Options, activation_of
from warmstart.models.huggingface_tokenizer import Tokenizer, read_tokenizer
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.dialects.languages import M2M100
from warmstart.models.transformer.dialects.slow_tokenizers import with_table
from warmstart.models.transformer.dialects.transformers_kinds import EPSILON, KINDS, Kind, kind_of, positions_of
from warmstart.models.transformer.positions import sinusoids
from warmstart.spec.generated import Generated
from warmstart.spec.lossy import ExtraRows
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Chain, Reshape
from warmstart.vocabularies.tokens import TokenVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

_TABLES = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
_EMBEDDINGS = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
_PAD = "<pad>"


@dataclass(frozen=True)
class TransformersDialect(HuggingfaceDialect):
    """Weights [out, in] as ``nn.Linear`` has them; names of BART, from which the others were copied.

    ``dtype`` is that of arrays which the configuration says.
    """

    dtype: str = "float32"
    types = tuple(KINDS)

    def adapt(self, facts: Facts) -> TransformersDialect:
        return replace(self, dtype=facts.dtype)

    def view(self, checkpoint: Checkpoint) -> Checkpoint:
        return Loaded(checkpoint)

    def left_behind(self, config: Any) -> Mapping[str, str]:
        unused = {} if config.tied_embeddings in ("all", "inputs") else {"model.shared.weight": "no side uses it"}
        return {
            "model.*.embed_positions.weights": "computed positions",
            "model.*.version": "a mark of fairseq without meaning",
            **unused,
        }

    def approximations(self, config: TransformerConfig) -> Mapping[str, str]:
        if config.layer_norm_epsilon == EPSILON:
            return {}
        return {"layer_norm_epsilon": f"{EPSILON:g}, not {config.layer_norm_epsilon:g}"}

    # what is read

    def read_config(self, checkpoint: Checkpoint) -> TransformerConfig:
        loaded = checkpoint if isinstance(checkpoint, Loaded) else Loaded(checkpoint)
        options = Options(loaded.metadata["config"], loaded.path.with_name(CONFIG))
        kind = KINDS[str(options.get("model_type"))]
        shared = options.get("share_encoder_decoder_embeddings", True)
        tied = bool(options.get("tie_word_embeddings", True))
        shared = bool(shared) and (tied or not _two_tables(loaded))
        width, heads = options.whole("d_model"), options.whole("encoder_attention_heads")
        rows, positions = options.whole("vocab_size"), options.whole("max_position_embeddings", 1024)
        target_rows = options.get("decoder_vocab_size", None) or rows
        inner, decoder_inner = options.whole("encoder_ffn_dim"), options.whole("decoder_ffn_dim")
        _legacy(options, kind, heads)
        values = {
            "source_vocab_size": rows - kind.pad_row,
            "target_vocab_size": (rows if shared else target_rows) - kind.pad_row,
            "d_model": width,
            "num_heads": heads,
            "d_ff": inner,
            "decoder_d_ff": None if inner == decoder_inner else decoder_inner,
            "encoder_layers": options.whole("encoder_layers"),
            "decoder_layers": options.whole("decoder_layers"),
            "activation": activation_of(options, "activation_function", "relu" if not kind.bias else "gelu"),
            "norm": kind.norm,
            "tied_embeddings": ("all" if shared else "target") if tied else ("inputs" if shared else "none"),
            "output_bias": _has_bias(loaded),
            "layernorm_embedding": kind.layernorm_embedding,
            "scale_embeddings": bool(options.get("scale_embedding", not kind.bias)),
            "decoder_start": self._start(options, kind, loaded, rows),
            "source_eos": kind.pad_row,  # the tokenizers of the others frame a source themselves
            "layer_norm_epsilon": EPSILON,
            "dropout": options.get("dropout", 0.1),
            "attention_dropout": options.get("attention_dropout", 0.0),
            "ffn_dropout": options.get("activation_dropout", 0.0),
            **_positions(loaded, kind, positions, width),
        }
        for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
            options.get(key, None)
        options.finish(f"{kind.architecture}")
        try:
            return TransformerConfig.model_validate(values)
        except Invalid as error:
            problems = validation_problems(error)
            raise DialectError("the model's options are wrong", where=options.where, problems=problems) from None

    @staticmethod
    def _start(options: Options, kind: Kind, loaded: Loaded, rows: int) -> str:
        row = options.get("decoder_start_token_id", options.values.get("eos_token_id"))
        if kind.pad_row:
            pad = options.get("pad_token_id", rows - 1)
            if row != pad or pad != rows - 1:
                options.problem(
                    "the decoder does not start from the row of <pad> behind the vocabulary",
                    expected=f"decoder_start_token_id and pad_token_id {rows - 1}", found=f"{row} and {pad}",
                )  # fmt: skip
            return "zero"
        if options.values.get("model_type") == "mbart":
            # mBART-25 starts from the code of the language, its successor from the end token.
            return "given" if options.values.get("tokenizer_class") in ("MBartTokenizer", None) else "eos"
        if options.values.get("model_type") == "pegasus":
            return "pad"
        for start in ("eos", "bos", "pad"):
            if row is not None and row == options.values.get(f"{start}_token_id"):
                return start
        options.problem("decoder_start_token_id is not the end, start or padding token", found=repr(row))
        return "eos"

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        loaded = checkpoint if isinstance(checkpoint, Loaded) else Loaded(checkpoint)
        if files:
            from warmstart.vocabularies.load import load_vocabulary

            paths = [Path(f) for f in files] * (2 if len(files) == 1 else 1)
            if len(paths) != 2:
                raise VocabularyError("a translation model has two vocabularies", found=len(paths))
            return dict(zip(("source", "target"), map(load_vocabulary, paths), strict=True))
        config = loaded.metadata["config"]
        kind = KINDS[config["model_type"]]
        kept = dict(loaded.metadata["tokenizer"])
        where = loaded.path.parent
        own_table = ("vocab.json",) if "sentencepiece.bpe.model" in kept or kind.pad_row else ()
        defaults = _defaults(kind, kept, config)
        tokenizer = read_tokenizer(with_table(kept, config, where), where, defaults, own_table)
        tables = {"source": _rows(tokenizer, kind, config, where)}
        tables["target"] = tables["source"]
        if tokenizer.settings.get("separate_vocabs"):
            other = {**kept, "vocab.json": kept.get("target_vocab.json", b"{}")}
            of_target = {**config, "vocab_size": config.get("decoder_vocab_size") or config.get("vocab_size")}
            tables["target"] = _rows(read_tokenizer(other, where, defaults, own_table), kind, of_target, where)
        for name in (CONFIG, GENERATION):
            if (where / name).is_file():
                kept[name] = (where / name).read_bytes()
        special = tokenizer.special
        bos = {"marian": "<s>", "pegasus": special.get("pad_token")}.get(config["model_type"], special.get("bos_token"))
        eos, unk = special.get("eos_token", "</s>"), special.get("unk_token")
        return {
            side: TokenVocabulary(
                table, eos, unk, bos=bos, pad=special.get("pad_token"), files=kept if side == "source" else None
            )
            for side, table in tables.items()
        }

    # what both directions share

    def rules(self, config: TransformerConfig) -> list[Rule]:
        c = config
        kind = KINDS[kind_of(c)]
        rows = ExtraRows(last=1) if kind.pad_row else None
        sizes = {"encoder": c.source_vocab_size, "decoder": c.target_vocab_size}
        shared = c.tied_embeddings in ("all", "inputs")
        table = "model.shared.weight" if shared else "model.encoder.embed_tokens.weight"
        rules = [
            rule(table, "encoder.embedding.weight", rows),
            rule("model.decoder.embed_tokens.weight", "decoder.embedding.weight", rows, alternative=shared),
            rule("lm_head.weight", "decoder.output.weight", rows, alternative=c.tied_embeddings in ("all", "target")),
        ]
        if shared:
            again = "model.encoder.embed_tokens.weight"  # of older files; where it differs, the library takes both
            rules.append(rule(again, "encoder.embedding.weight", rows, alternative=True, copy=True))
        if c.output_bias:
            bias = Reshape((1, -1), (-1,))
            rules.append(rule("final_logits_bias", "decoder.output.bias", Chain((bias, rows)) if rows else bias))
        elif kind.bias:
            shape = (1, sizes["decoder"] + kind.pad_row)
            nothing = Generated(partial(np.zeros, shape, np.float32), shape, dtype=self.dtype)
            rules.append(rule("final_logits_bias", (), nothing))
        rules += _tables(c, kind, self.dtype)
        for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
            if c.layernorm_embedding:
                rules += _both(f"model.{side}.layernorm_embedding", f"{side}.embedding_norm", {})
            if c.norm == "pre":
                rules += _both(f"model.{side}.layer_norm", f"{side}.norm", {})
            rules += _layer(side, {"i": layers})
        return rules

    # what is written

    def files(
        self, config: TransformerConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts
    ) -> Mapping[str, bytes]:
        from warmstart.models.transformer.dialects.transformers_files import files_of

        name = kind_of(config)
        return files_of(config, name, KINDS[name], vocabularies, facts)


def _legacy(options: Options, kind: Kind, heads: int) -> None:
    """Keys that older versions wrote beside those that say the same, and what must be as the class fixes it."""
    pre = kind.norm == "pre"
    options.expect("decoder_attention_heads", heads)
    options.expect("is_encoder_decoder", True)
    options.expect("is_decoder", False)
    options.expect("normalize_before", pre)
    options.expect("normalize_embedding", kind.layernorm_embedding)
    options.expect("add_final_layer_norm", pre, None)
    options.expect("static_position_embeddings", kind.sinusoids is not None)
    options.expect("add_bias_logits", False)
    options.expect("num_hidden_layers", options.values.get("encoder_layers"))
    options.expect("num_attention_heads", heads)
    options.expect("hidden_size", options.values.get("d_model"))
    options.expect("do_blenderbot_90_layernorm", False)
    options.expect("extra_pos_embeddings", kind.offset, 0, 1, 2)


def _two_tables(loaded: Loaded) -> bool:
    """Whether the sides' tables differ, as they may in models that transformers 5 made with nothing tied."""
    if any(name not in loaded.entries for name in _EMBEDDINGS):
        return False
    source, target = map(loaded.raw, _EMBEDDINGS)
    return not np.array_equal(source, target)


def _has_bias(loaded: Loaded) -> bool:
    return "final_logits_bias" in loaded.entries and bool(np.any(loaded.read("final_logits_bias")))


def _positions(loaded: Loaded, kind: Kind, length: int, width: int) -> dict[str, Any]:
    if kind.sinusoids is None:
        return {"positions": "learned", "max_positions": length, "positions_per_side": True}
    for formula in dict.fromkeys((kind.sinusoids, "marian")):
        computed = sinusoids(length, width, formula)
        tables = [loaded.read(name) for name in _TABLES if name in loaded.entries]
        if all(np.array_equal(table, computed.astype(table.dtype)) for table in tables):
            return {"positions": "sinusoidal", "sinusoids": formula, "max_positions": length}
    return {"positions": "learned", "max_positions": length, "positions_per_side": True}


def _rows(tokenizer: Tokenizer, kind: Kind, config: Mapping[str, Any], where: object) -> list[str]:
    """The tokens of the rows that the model has."""
    tokens, rows = list(tokenizer.tokens), config.get("vocab_size")
    if not isinstance(rows, int):
        raise VocabularyError("config.json does not say the size of the vocabulary", where=where, found=repr(rows))
    if kind.pad_row:
        if len(tokens) == rows and tokens[-1] == _PAD:
            tokens.pop()
        return tokens
    if not kind.bias:
        _languages(tokens, tokenizer)
        made_up = tokenizer.settings.get("num_madeup_words", rows - len(tokens))
        if not isinstance(made_up, int):
            raise VocabularyError("num_madeup_words is no number", where=where, found=repr(made_up))
        return tokens + [f"madeupword{i}" for i in range(made_up)]
    return tokens[:rows]


def _languages(tokens: list[str], tokenizer: Tokenizer) -> None:
    """M2M100's tokenizer knows its languages without a file: they stand behind the table."""
    known = M2M100.get(str(tokenizer.settings.get("language_codes")), "").split()
    if tokenizer.settings.get("tokenizer_class") == "M2M100Tokenizer":
        there = set(tokens)
        tokens += [f"__{code}__" for code in known if f"__{code}__" not in there]
    if tokens[-1] == tokenizer.special.get("unk_token"):  # added behind the table by some versions of the library
        tokens.insert(_UNKNOWN_ROW, tokens.pop())


def _defaults(kind: Kind, files: Mapping[str, bytes], config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens of the tokenizer's class, which differ among those that one model goes with."""
    special = dict(kind.special or {})
    if "sentencepiece.bpe.model" in files and "vocab.json" in files:  # M2M100Tokenizer
        special = {k: v for k, v in special.items() if k not in ("cls_token", "mask_token")}
    if config.get("tokenizer_class") == "MBart50Tokenizer":
        special.pop("bos_token")
    return special


_UNKNOWN_ROW = 3


def _tables(c: TransformerConfig, kind: Kind, dtype: str) -> list[Rule]:
    """Positions: learned ones, computed ones that are saved, and computed ones that are only met with."""
    extra = ExtraRows(first=kind.offset) if kind.offset else None
    if c.positions == "learned":
        sides = ("encoder.", "decoder.") if c.positions_per_side else ("", "")
        return [
            rule(table, f"{side}positions.weight", extra, copy=not side and table != _TABLES[0])
            for table, side in zip(_TABLES, sides, strict=True)
        ]
    length = positions_of(c)
    computed = Generated(partial(sinusoids, length, c.d_model, c.sinusoids), (length, c.d_model), dtype=dtype)
    saved = kind.writes_positions or c.sinusoids != kind.sinusoids
    return [rule(table, (), computed, alternative=not saved) for table in _TABLES]


def _layer(side: str, each: Mapping[str, int]) -> list[Rule]:
    theirs, ours = f"model.{side}.layers.{{i}}", f"{side}.layers.{{i}}"
    attentions = {"self_attn": "self_attention"}
    if side == "decoder":
        attentions["encoder_attn"] = "cross_attention"
    rules: list[Rule] = []
    for short, attention in attentions.items():
        for letter, part in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "output")):
            rules += _both(f"{theirs}.{short}.{letter}", f"{ours}.{attention}.{part}", each)
        rules += _both(f"{theirs}.{short}_layer_norm", f"{ours}.{attention}_norm", each)
    rules += _both(f"{theirs}.fc1", f"{ours}.ffn.up", each)
    rules += _both(f"{theirs}.fc2", f"{ours}.ffn.down", each)
    return rules + _both(f"{theirs}.final_layer_norm", f"{ours}.ffn_norm", each)


def _both(theirs: str, ours: str, each: Mapping[str, int]) -> list[Rule]:
    return [rule(f"{theirs}.{what}", f"{ours}.{what}", each=each) for what in ("weight", "bias")]
