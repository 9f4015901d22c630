"""What ``transformers`` keeps beside the arrays of an encoder-decoder: configuration and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from warmstart.errors import VocabularyError
from warmstart.models.family import Facts
from warmstart.models.huggingface import ACTIVATIONS, CONFIG, GENERATION, TOKENIZER_FILES, json_file
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.dialects.slow_tokenizers import MODELS
from warmstart.models.transformer.dialects.transformers_kinds import Kind, positions_of
from warmstart.vocabularies.vocabulary import Vocabulary

_PAD = "<pad>"


def files_of(
    config: TransformerConfig, name: str, kind: Kind, vocabularies: Mapping[str, Vocabulary], facts: Facts
) -> dict[str, bytes]:
    """Every file beside the arrays, by name.

    What a model's own files said that the family does not need (``files`` of its vocabulary) returns as it was.

    Raises:
        VocabularyError: the two sides' vocabularies do not go with the class.
    """
    kept = dict(getattr(vocabularies["source"], "files", {}))
    special = _special(vocabularies["target"], config, kind)
    files = {
        CONFIG: json_file(_config(config, name, kind, special, _object(kept.get(CONFIG)), facts)),
        GENERATION: json_file(_generation(special, _object(kept.get(GENERATION)))),
    }
    own = {file: data for file, data in kept.items() if file in TOKENIZER_FILES}
    return {**files, **(own if _still(own, vocabularies) else _tokenizer(config, kind, vocabularies, own))}


def _object(data: bytes | None) -> dict[str, Any]:
    return json.loads(data) if data else {}


def _special(target: Vocabulary, config: TransformerConfig, kind: Kind) -> dict[str, int | None]:
    """Rows of the special tokens, by transformers' names."""
    index = target.index
    pad = config.target_vocab_size if kind.pad_row else index.get(getattr(target, "pad", None) or _PAD)
    bos = None if kind.pad_row else index.get(getattr(target, "bos", None) or "<s>")
    start = {"zero": pad, "eos": target.eos_id, "bos": bos, "pad": pad, "given": None}[config.decoder_start]
    return {"pad_token_id": pad, "bos_token_id": bos, "eos_token_id": target.eos_id, "decoder_start_token_id": start}


def _config(
    c: TransformerConfig, name: str, kind: Kind, special: Mapping[str, int | None], kept: dict[str, Any], facts: Facts
) -> dict[str, Any]:
    usual = {
        "architectures": [kind.architecture],
        "is_encoder_decoder": True,
        "use_cache": True,
        "dtype": facts.dtype,
        "normalize_before": kind.norm == "pre",
        "normalize_embedding": kind.layernorm_embedding,
        "dropout": c.dropout,
        "attention_dropout": c.attention_dropout,
        "activation_dropout": c.ffn_dropout,
        "forced_eos_token_id": special["eos_token_id"],
        **special,
    }
    if name == "mbart":  # the two of them start their decoders from different tokens
        usual["tokenizer_class"] = "MBart50Tokenizer" if c.decoder_start == "eos" else "MBartTokenizer"
    activation = kept.get("activation_function")
    if ACTIVATIONS.get(str(activation)) != c.activation:
        activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == c.activation)
    arrays: dict[str, Any] = {
        "model_type": name,
        "vocab_size": c.source_vocab_size + kind.pad_row,
        "d_model": c.d_model,
        "encoder_layers": c.encoder_layers,
        "decoder_layers": c.decoder_layers,
        "encoder_attention_heads": c.num_heads,
        "decoder_attention_heads": c.num_heads,
        "encoder_ffn_dim": c.d_ff,
        "decoder_ffn_dim": c.decoder_d_ff or c.d_ff,
        "max_position_embeddings": positions_of(c),
        "activation_function": activation,
        "scale_embedding": c.scale_embeddings,
        "tie_word_embeddings": c.tied_embeddings in ("all", "target"),
    }
    if kind.pad_row:
        arrays["share_encoder_decoder_embeddings"] = c.tied_embeddings in ("all", "inputs")
        arrays["decoder_vocab_size"] = c.target_vocab_size + 1
    if kept.get("model_type") != name:
        return {**usual, **arrays}
    arrays["torch_dtype" if "torch_dtype" in kept else "dtype"] = facts.dtype
    defaults = {
        "tie_word_embeddings": True, "share_encoder_decoder_embeddings": True, "dtype": "float32",
        "decoder_vocab_size": arrays["vocab_size"], "scale_embedding": not kind.bias,
    }  # fmt: skip
    unsaid = {key for key, value in defaults.items() if key not in kept and arrays.get(key) == value}
    return {**kept, **{key: value for key, value in arrays.items() if key not in unsaid}}


def _generation(special: Mapping[str, int | None], kept: dict[str, Any]) -> dict[str, Any]:
    if kept:
        return kept
    settings: dict[str, Any] = {k: v for k, v in special.items() if v is not None}
    settings |= {"forced_eos_token_id": special["eos_token_id"], "bad_words_ids": [[special["pad_token_id"]]]}
    return {k: v for k, v in settings.items() if v not in (None, [[None]])}


def _still(own: Mapping[str, bytes], vocabularies: Mapping[str, Vocabulary]) -> bool:
    """Whether files of a tokenizer came along: then they are the model's, since its tokens came with them."""
    return any(name in own for name in ("tokenizer.json", "vocab.json", *MODELS)) and "source" in vocabularies


def _tokenizer(
    c: TransformerConfig, kind: Kind, vocabularies: Mapping[str, Vocabulary], own: Mapping[str, bytes]
) -> dict[str, bytes]:
    """A tokenizer from the vocabularies alone: their table and, where they are SentencePiece's, its models."""
    source, target = vocabularies["source"], vocabularies["target"]
    separate = source.tokens != target.tokens
    if separate and not kind.pad_row:
        raise VocabularyError(f"{kind.architecture} has one vocabulary for both sides", found="two")
    files = {"vocab.json": _table(source, kind)}
    if separate:
        files["target_vocab.json"] = _table(target, kind)
    for side, vocabulary in (("source", source), ("target", target)):
        if vocabulary.kind == "sentencepiece":
            files[f"{side}.spm"] = vocabulary.file()[1]
        elif f"{side}.spm" in own:
            files[f"{side}.spm"] = own[f"{side}.spm"]
    settings = {
        "tokenizer_class": kind.tokenizer,
        "eos_token": source.tokens[source.eos_id],
        "unk_token": "<unk>" if source.unk_id is None else source.tokens[source.unk_id],
        "pad_token": getattr(source, "pad", None) or _PAD,
        **({"separate_vocabs": separate, "model_max_length": c.max_positions or 512} if kind.pad_row else {}),
    }
    return {**files, "tokenizer_config.json": json_file(settings)}


def _table(vocabulary: Vocabulary, kind: Kind) -> bytes:
    rows = {token: row for row, token in enumerate(vocabulary.tokens)}
    if kind.pad_row:
        if _PAD in rows:
            raise VocabularyError("the vocabulary has a token <pad> already, and MarianMT's stands behind it")
        rows[_PAD] = len(rows)
    return json.dumps(rows, indent=2, ensure_ascii=True).encode("ascii")
