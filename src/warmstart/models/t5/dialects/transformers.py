"""How ``transformers`` spells T5: ``T5``, ``MT5`` and ``UMT5ForConditionalGeneration``; ByT5 is a T5."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from warmstart.checked import Invalid
from warmstart.errors import DialectError, VocabularyError, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.family import Facts
from warmstart.models.huggingface import (
    ACTIVATIONS,
    CONFIG,
    GENERATION,
    TOKENIZER_FILES,
    HuggingfaceDialect,
    Loaded,
    Options,
    json_file,
    tokenizer_at,
)
from warmstart.models.huggingface_tokenizer import read_tokenizer
from warmstart.models.t5.config import T5Config
from warmstart.models.t5.parameters import EMBEDDING, VOCABULARY
from warmstart.models.t5.vocabulary import EOS, PAD, UNK, of_bytes, padded, vocabulary_of, with_sentinels
from warmstart.spec.mapping import Rule, rule
from warmstart.vocabularies.sentencepiece import SentencePieceVocabulary
from warmstart.vocabularies.tokens import TokenVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

ARCHITECTURES = {
    "t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration", "umt5": "UMT5ForConditionalGeneration",
}  # fmt: skip
_SHARED, _OUTPUT = "shared.weight", "lm_head.weight"
_SPECIAL = {"eos_token": EOS, "unk_token": UNK, "pad_token": PAD}
_SAMPLE = 64  # rows
_BYTE_SENTINELS = 125
_DERIVED = ("dense_act_fn", "is_gated_act", "n_positions", "bos_token_id", "scalable_attention")


class TransformersDialect(HuggingfaceDialect):
    """Weights [out, in]; the table of position biases in the first layer of a side, or in every layer (umT5)."""

    types = tuple(ARCHITECTURES)

    def view(self, checkpoint: Checkpoint) -> Checkpoint:
        return Loaded(checkpoint)

    def left_behind(self, config: Any) -> Mapping[str, str]:
        return {
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": (
                "cross attention has no positions: the library ignores it, too"
            ),
        }

    # what both directions share

    def rules(self, config: T5Config) -> list[Rule]:
        c = config
        rules = [rule(_SHARED, EMBEDDING)]
        for side in ("encoder", "decoder"):  # of older files; where they differ, the library takes each
            rules.append(rule(f"{side}.embed_tokens.weight", EMBEDDING, alternative=True, copy=True))
        # Where the output layer is the embedding, the library takes that from `tie_word_embeddings`, which also scales.
        if not (c.tied_output and c.scale_outputs):
            rules.append(rule(_OUTPUT, "decoder.output.weight", optional=c.tied_output))
        else:
            rules.append(rule(_OUTPUT, "decoder.output.weight", alternative=True))
        for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
            rules.append(rule(f"{side}.final_layer_norm.weight", f"{side}.norm.weight"))
            if c.position_bias == "shared":
                bias = f"{side}.block.0.layer.0.{_BIAS}"
                rules.append(rule(bias, f"{side}.position_bias.weight"))
            rules += _layer(c, side, {"i": layers})
        return rules

    # what is read

    def read_config(self, checkpoint: Checkpoint) -> T5Config:
        loaded = checkpoint if isinstance(checkpoint, Loaded) else Loaded(checkpoint)
        options = Options(loaded.metadata["config"], loaded.path.with_name(CONFIG))
        kind = str(options.get("model_type"))
        layers = options.whole("num_layers")
        decoder_layers = options.get("num_decoder_layers", None)
        proj = str(options.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu"))
        gated, _, activation = proj.rpartition("-")
        if gated not in ("", "gated"):
            options.problem(f"feed_forward_proj: {proj!r} is not supported", expected="gated-ACTIVATION or ACTIVATION")
        activation = "gelu_new" if proj == "gated-gelu" else activation
        if activation not in ACTIVATIONS:
            options.problem(f"feed_forward_proj: {proj!r} is not supported", expected=", ".join(ACTIVATIONS))
        tie = options.get("tie_word_embeddings", kind != "mt5") is not False
        values = {
            "vocab_size": options.whole("vocab_size"),
            "d_model": options.whole("d_model", 512),
            "d_kv": options.whole("d_kv", 64),
            "num_heads": options.whole("num_heads", 8 if kind == "t5" else 6),
            "d_ff": options.whole("d_ff", 2048 if kind == "t5" else 1024),
            "encoder_layers": layers,
            "decoder_layers": layers if decoder_layers is None else options.whole("num_decoder_layers"),
            "activation": ACTIVATIONS.get(activation, "relu"),
            "gated": gated == "gated",
            "tied_output": _tied(loaded, kind, tie),
            "scale_outputs": _scaled(options, kind, tie),
            "position_bias": "per_layer" if kind == "umt5" else "shared",
            "num_buckets": options.whole("relative_attention_num_buckets", 32),
            "max_distance": options.whole("relative_attention_max_distance", 128),
            "layer_norm_epsilon": options.get("layer_norm_epsilon", 1e-6),
            "dropout": options.get("dropout_rate", 0.1),
        }
        options.expect("is_encoder_decoder", True)
        options.expect("is_decoder", False)
        pad = options.get("pad_token_id", 0)
        if options.get("decoder_start_token_id", pad) not in (pad, None):
            options.problem(
                "the decoder does not start from the padding token", expected=f"decoder_start_token_id {pad}"
            )
        for key in ("eos_token_id", *_DERIVED):
            options.get(key, None)
        options.finish(ARCHITECTURES[kind])
        try:
            return T5Config.model_validate(values)
        except Invalid as error:
            problems = validation_problems(error)
            raise DialectError("the model's options are wrong", where=options.where, problems=problems) from None

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        loaded = checkpoint if isinstance(checkpoint, Loaded) else Loaded(checkpoint)
        config, where = loaded.metadata["config"], loaded.path.parent
        size = config.get("vocab_size")
        rows = size if isinstance(size, int) else 0  # which read_config reports
        given = tokenizer_at(files)
        if files and not given:
            return vocabulary_of([Path(file) for file in files], rows, where)
        kept = {path.name: path.read_bytes() for path in given} or dict(loaded.metadata["tokenizer"])
        vocabulary = _vocabulary(kept, config, rows, where)
        for name in (CONFIG, GENERATION):
            if (where / name).is_file():
                kept[name] = (where / name).read_bytes()
        found = TokenVocabulary(vocabulary.tokens, _token(vocabulary.eos_id, vocabulary), _token(
            vocabulary.unk_id, vocabulary), bos=vocabulary.pad, pad=vocabulary.pad, files=kept)  # fmt: skip
        found.beside = given
        return {VOCABULARY: found}

    # what is written

    def files(self, config: T5Config, vocabularies: Mapping[str, Vocabulary], facts: Facts) -> Mapping[str, bytes]:
        vocabulary = vocabularies[VOCABULARY]
        kept = dict(getattr(vocabulary, "files", {}))
        old = json.loads(kept.get(CONFIG, b"{}"))
        special = _rows(vocabulary)
        generation = json.loads(kept.get(GENERATION, b"{}")) or special
        own = {name: data for name, data in kept.items() if name in TOKENIZER_FILES}
        return {
            CONFIG: json_file(_config(config, old, special, facts)),
            GENERATION: json_file(generation),
            **(own if set(own) - {"spiece.model"} else _tokenizer(vocabulary, own)),
        }


_BIAS = "SelfAttention.relative_attention_bias.weight"
_LETTERS = {"q": "query", "k": "key", "v": "value", "o": "output"}


def _layer(c: T5Config, side: str, each: Mapping[str, int]) -> list[Rule]:
    theirs, ours = f"{side}.block.{{i}}.layer", f"{side}.layers.{{i}}"
    parts = [("self_attention", "SelfAttention"), ("cross_attention", "EncDecAttention"), ("ffn", "DenseReluDense")]
    if side == "encoder":
        del parts[1]
    inner = {"wi_0": "gate", "wi_1": "up"} if c.gated else {"wi": "up"}
    rules = []
    for k, (part, name) in enumerate(parts):
        rules.append(rule(f"{theirs}.{k}.layer_norm.weight", f"{ours}.{part}_norm.weight", each=each))
        for letter, what in ({**inner, "wo": "down"} if part == "ffn" else _LETTERS).items():
            rules.append(rule(f"{theirs}.{k}.{name}.{letter}.weight", f"{ours}.{part}.{what}.weight", each=each))
    if c.position_bias == "per_layer":
        rules.append(rule(f"{theirs}.0.{_BIAS}", f"{ours}.self_attention.position_bias.weight", each=each))
    return rules


def _major(options: Mapping[str, Any]) -> int:
    first = str(options.get("transformers_version", "")).partition(".")[0]
    return int(first) if first.isdigit() else 0


def _scaled(options: Options, kind: str, tie: bool) -> bool:
    """Whether the class multiplies what enters its output layer by 1/√d_model.

    Source: transformers 4 scales where ``tie_word_embeddings``. Since 5, T5 keeps that in ``scale_decoder_outputs``,
    MT5 never scales, and every configuration says ``tie_word_embeddings`` (``modeling_{t5,mt5,umt5}.py``).
    """
    said = options.get("scale_decoder_outputs", None)
    if kind == "mt5":
        return tie and _major(options.values) < 5
    return bool(said) if kind == "t5" and said is not None else tie


def _tied(loaded: Loaded, kind: str, tie: bool) -> bool:
    """Whether the output layer is the embedding. Where the configuration says so and an array of its own is there,
    transformers 5 keeps one that differs, and so does UMT5; a few rows tell, and all are compared when it is converted.
    """
    if _OUTPUT not in loaded.entries or _SHARED not in loaded.entries:
        return _OUTPUT not in loaded.entries
    if loaded.ties.get(_OUTPUT, _OUTPUT) == loaded.ties.get(_SHARED, _SHARED):
        return True
    if not tie:
        return False
    if kind != "umt5" and _major(loaded.metadata["config"]) < 5:
        return True
    there, shared = (loaded.original.read(name)[:_SAMPLE].tobytes() for name in (_OUTPUT, _SHARED))
    return there == shared


def _vocabulary(kept: Mapping[str, bytes], config: Mapping[str, Any], rows: int, where: object) -> TokenVocabulary:
    filler = "<unused_{}>" if config.get("model_type") == "umt5" else "<extra_id_{}>"
    settings = json.loads(kept.get("tokenizer_config.json", b"{}"))
    kind = str(settings.get("tokenizer_class") or config.get("tokenizer_class"))
    if kind.startswith("ByT5"):
        added = {int(row): str(token["content"]) for row, token in settings.get("added_tokens_decoder", {}).items()}
        added |= {row: token for token, row in json.loads(kept.get("added_tokens.json", b"{}")).items()}
        tokens = of_bytes()
        later = {row: token for row, token in added.items() if row >= len(tokens)}
        later = later or {len(tokens) + k: f"<extra_id_{k}>" for k in range(settings.get("extra_ids", _BYTE_SENTINELS))}
        if sorted(later) != list(range(len(tokens), len(tokens) + len(later))):
            raise VocabularyError("added tokens of ByT5 leave rows without a token", where=where)
        tokens += [later[row] for row in sorted(later)]
        return TokenVocabulary(padded(tokens, rows, where, filler), EOS, UNK, bos=PAD, pad=PAD)
    usual = _SPECIAL
    if "tokenizer.json" not in kept and "spiece.model" in kept:
        pieces = SentencePieceVocabulary(kept["spiece.model"])
        tokens = with_sentinels(list(pieces.tokens), rows, int(settings.get("extra_ids", 100)))
        kept = {**kept, "vocab.json": json.dumps({token: row for row, token in enumerate(tokens)}).encode("ascii")}
        named = {"eos_token": pieces.eos_id, "unk_token": pieces.unk_id, "pad_token": 0}
        usual = {**usual, **{role: tokens[row] for role, row in named.items() if row is not None and row >= 0}}
    found = read_tokenizer(kept, where, usual)
    special = found.special
    table = padded(found.tokens, rows, where, filler)
    pad = special.get("pad_token", PAD)
    return TokenVocabulary(table, special.get("eos_token", EOS), special.get("unk_token", UNK), bos=pad, pad=pad)


def _token(row: int | None, vocabulary: Vocabulary) -> Any:
    return None if row is None else vocabulary.tokens[row]


def _rows(vocabulary: Vocabulary) -> dict[str, Any]:
    pad = vocabulary.index.get(getattr(vocabulary, "pad", None) or PAD, 0)
    return {"pad_token_id": pad, "eos_token_id": vocabulary.eos_id, "decoder_start_token_id": pad}


def _config(c: T5Config, old: dict[str, Any], special: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    kind = "umt5" if c.position_bias == "per_layer" else "t5"
    if old.get("model_type") == "mt5" and kind == "t5" and not c.scale_outputs:
        kind = "mt5"
    scaled = {"scale_decoder_outputs": c.scale_outputs} if kind == "t5" else {}
    arrays: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": c.vocab_size,
        "d_model": c.d_model,
        "d_kv": c.d_kv,
        "d_ff": c.d_ff,
        "num_layers": c.encoder_layers,
        "num_decoder_layers": c.decoder_layers,
        "num_heads": c.num_heads,
        "relative_attention_num_buckets": c.num_buckets,
        "relative_attention_max_distance": c.max_distance,
        "layer_norm_epsilon": c.layer_norm_epsilon,
        "feed_forward_proj": _projection(c, old),
        "dropout_rate": c.dropout,
        "tie_word_embeddings": c.scale_outputs,
        **scaled,
    }
    if old.get("model_type") != kind:
        usual = {"architectures": [ARCHITECTURES[kind]], "is_encoder_decoder": True, "use_cache": True}
        return {**usual, "dtype": facts.dtype, **special, **arrays}
    arrays["torch_dtype" if "torch_dtype" in old else "dtype"] = facts.dtype
    if kind == "mt5" and _major(old) >= 5:  # which says so always, and does not scale
        del arrays["tie_word_embeddings"]
    if "scale_decoder_outputs" in old and "tie_word_embeddings" in old:
        del arrays["tie_word_embeddings"]
    return {**old, **arrays}


def _projection(c: T5Config, old: Mapping[str, Any]) -> str:
    if c.gated and c.activation == "gelu_tanh":
        return "gated-gelu"
    said = str(old.get("feed_forward_proj", "")).rpartition("-")[2]
    names = {theirs for theirs, ours in ACTIVATIONS.items() if ours == c.activation} - ({"gelu"} if c.gated else set())
    name = said if said in names else next(theirs for theirs in ACTIVATIONS if theirs in names)
    return f"gated-{name}" if c.gated else name


def _tokenizer(vocabulary: Vocabulary, own: Mapping[str, bytes]) -> dict[str, bytes]:
    """A tokenizer from the vocabulary alone: SentencePiece's model, or a table of tokens between spaces."""
    special = {"eos_token": vocabulary.tokens[vocabulary.eos_id], "pad_token": getattr(vocabulary, "pad", None) or PAD,
               "unk_token": _token(vocabulary.unk_id, vocabulary)}  # fmt: skip
    model = own.get("spiece.model") or (vocabulary.file()[1] if vocabulary.kind == "sentencepiece" else None)
    if model is not None:
        sentinels = sum(token.startswith("<extra_id_") for token in set(vocabulary.tokens))
        settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": min(sentinels, 100), **special}
        return {"spiece.model": model, "tokenizer_config.json": json_file(settings)}
    rows = {token: row for row, token in reversed(list(enumerate(vocabulary.tokens)))}
    ordered = dict(sorted(rows.items(), key=lambda item: item[1]))
    table = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": ordered, "unk_token": special["unk_token"] or PAD},
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    return {
        "tokenizer.json": (json.dumps(table, ensure_ascii=False, indent=2) + "\n").encode("utf-8", "surrogatepass"),
        "tokenizer_config.json": json_file(settings),
    }
