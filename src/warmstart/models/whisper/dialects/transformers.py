"""How ``transformers`` spells Whisper."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import Any

from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.family import Facts
from warmstart.models.huggingface import CONFIG, GENERATION, TOKENIZER_FILES, folder_of, json_file
from warmstart.models.huggingface_tokenizer import read_tokenizer
from warmstart.models.pretrained import (
    SIDE,
    PretrainedDialect,
    beside,
    both,
    dtype_key,
    ignore,
    kept_files,
    object_of,
    options_of,
    rows_of,
    updated,
    validated,
)
from warmstart.models.whisper.config import WhisperConfig
from warmstart.spec.mapping import Rule, rule
from warmstart.vocabularies.subwords import ROLES, SubwordVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

# Family's key → key of config.json, and what the library takes where it is missing.
_KEYS: dict[str, tuple[str, int]] = {
    "vocab_size": ("vocab_size", 51865), "num_mel_bins": ("num_mel_bins", 80), "d_model": ("d_model", 384),
    "encoder_layers": ("encoder_layers", 4), "encoder_heads": ("encoder_attention_heads", 6),
    "encoder_d_ff": ("encoder_ffn_dim", 1536), "decoder_layers": ("decoder_layers", 4),
    "decoder_heads": ("decoder_attention_heads", 6), "decoder_d_ff": ("decoder_ffn_dim", 1536),
    "max_source_positions": ("max_source_positions", 1500), "max_target_positions": ("max_target_positions", 448),
}  # fmt: skip
_IGNORED = {
    "*_token_id": "of the tokenizer",
    "forced_decoder_ids": "a setting of generation",
    "dropout": "training",
    "attention_dropout": "training",
    "activation_dropout": "training",
    "apply_spec_augment": "training",
    "mask_*": "training",
    "use_weighted_layer_sum": "of a classifier",
    "median_filter_width": "a setting of timestamps",
    "scale_embedding": "the class does not compute with it",
    "num_hidden_layers": "encoder_layers again",
}
_END = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_IDS = {f"{role}_token_id": "<|endoftext|>" for role in ("bos", "eos", "pad")}
_IDS["decoder_start_token_id"] = "<|startoftranscript|>"
_PROMPT = {"no_timestamps_token_id": "<|notimestamps|>", "prev_sot_token_id": "<|startofprev|>"}
_MULTILINGUAL = 51865  # rows from which on OpenAI's own code and CTranslate2's engine take a model for multilingual
_TABLE = "model.decoder.embed_tokens.weight"
_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")
_ATTENTIONS = {"encoder": {"self_attn": "self_attention"}}
_ATTENTIONS["decoder"] = {**_ATTENTIONS["encoder"], "encoder_attn": "cross_attention"}


class TransformersDialect(PretrainedDialect):
    """Names of BART; positions are stored on both sides."""

    types = ("whisper",)

    def today(self, name: str) -> str:
        return f"model.{name}" if name.startswith(("encoder.", "decoder.")) else name

    def read_config(self, checkpoint: Checkpoint) -> WhisperConfig:
        loaded = self.view(checkpoint)
        options = options_of(loaded)
        options.expect("model_type", "whisper")
        values: dict[str, Any] = {ours: options.whole(*theirs) for ours, theirs in _KEYS.items()}
        values["tied_output"] = bool(options.get("tie_word_embeddings", True))
        options.expect("activation_function", "gelu", "gelu_python")
        options.expect("is_encoder_decoder", True)
        generation = {key: options.get(key, None) for key in ("suppress_tokens", "begin_suppress_tokens")}
        ignore(options, _IGNORED)
        if loaded.metadata["generation"]:
            generation = loaded.metadata["generation"]
        values |= self._generation(generation, loaded, values)
        return validated(WhisperConfig, values, options, "WhisperForConditionalGeneration")

    def _generation(self, said: Mapping[str, Any], loaded: Checkpoint, values: Mapping[str, Any]) -> dict[str, Any]:
        languages = said.get("lang_to_id")
        if isinstance(languages, dict):
            rows = list(languages.values())
            rows = sorted(rows) if all(isinstance(row, int) for row in rows) else rows
        else:
            tokens = self.vocabulary(loaded).tokens if loaded.metadata["tokenizer"] else ()
            rows = [row for row, token in enumerate(tokens) if _LANGUAGE.fullmatch(token)]
        heads = said.get("alignment_heads")
        if heads is None:  # the later half of the layers
            layers = values["decoder_layers"]
            heads = list(product(range(layers // 2, layers), range(values["decoder_heads"])))
        return {
            "suppress_ids": said.get("suppress_tokens"),
            "suppress_ids_begin": said.get("begin_suppress_tokens"),
            "lang_ids": rows,
            "alignment_heads": heads,
        }

    def vocabulary(self, loaded: Checkpoint) -> SubwordVocabulary:
        tokenizer = read_tokenizer(loaded.metadata["tokenizer"], folder_of(loaded), _END)
        missing = rows_of(loaded, _TABLE) - len(tokenizer.tokens)
        times = [f"<|{0.02 * i:.2f}|>" for i in range(missing)]
        special = {role: tokenizer.special.get(f"{role}_token") for role in ROLES}
        return SubwordVocabulary([*tokenizer.tokens, *times], special, kept_files(loaded))

    def rules(self, config: WhisperConfig) -> list[Rule]:
        c = config
        rules = [
            *both("model.encoder.conv1", "encoder.conv1"),
            *both("model.encoder.conv2", "encoder.conv2"),
            rule(_TABLE, "decoder.embedding.weight"),
            rule("proj_out.weight", "decoder.output.weight", alternative=c.tied_output),
        ]
        for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
            each, theirs, ours = {"i": layers}, f"model.{side}.layers.{{i}}", f"{side}.layers.{{i}}"
            rules.append(rule(f"model.{side}.embed_positions.weight", f"{side}.positions.weight"))
            rules += both(f"model.{side}.layer_norm", f"{side}.norm")
            for short, attention in _ATTENTIONS[side].items():
                for letter, part in (("q_proj", "query"), ("v_proj", "value"), ("out_proj", "output")):
                    rules += both(f"{theirs}.{short}.{letter}", f"{ours}.{attention}.{part}", each)
                rules.append(rule(f"{theirs}.{short}.k_proj.weight", f"{ours}.{attention}.key.weight", each=each))
                rules += both(f"{theirs}.{short}_layer_norm", f"{ours}.{attention}_norm", each)
            rules += both(f"{theirs}.fc1", f"{ours}.ffn.up", each)
            rules += both(f"{theirs}.fc2", f"{ours}.ffn.down", each)
            rules += both(f"{theirs}.final_layer_norm", f"{ours}.ffn_norm", each)
        return rules

    def files(self, config: WhisperConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts) -> Mapping[str, bytes]:
        vocabulary = vocabularies[SIDE]
        kept = object_of(vocabulary, CONFIG)
        values: dict[str, Any] = {"model_type": "whisper", "tie_word_embeddings": config.tied_output}
        values |= {key: getattr(config, ours) for ours, (key, _) in _KEYS.items()}
        if not kept:
            values |= {"architectures": ["WhisperForConditionalGeneration"], "activation_function": "gelu"}
            values |= _rows(vocabulary, _IDS)
        implied: dict[str, Any] = {**dict(_KEYS.values()), "tie_word_embeddings": True}
        values = {k: v for k, v in values.items() if not kept or k in kept or implied.get(k) != v}
        files = {CONFIG: updated(vocabulary, CONFIG, {**values, **dtype_key(kept, facts)})}
        files |= beside(vocabulary, (CONFIG,))
        if not self._says(config, vocabulary):
            decoding = _decoding(config, vocabulary)
            if not object_of(vocabulary, GENERATION):
                decoding = _prompted(decoding, config, vocabulary, kept)
            files[GENERATION] = updated(vocabulary, GENERATION, decoding)
        if not any(name in files for name in TOKENIZER_FILES):
            files |= _table(vocabulary)
        return files

    def _says(self, config: WhisperConfig, vocabulary: Vocabulary) -> bool:
        """Whether the files that came along say of decoding what the configuration does."""
        said = object_of(vocabulary, GENERATION) or object_of(vocabulary, CONFIG)
        if not said:
            return False
        languages = said.get("lang_to_id")
        rows = sorted(languages.values()) if isinstance(languages, dict) else list(_languages(vocabulary))
        return (
            said.get("suppress_tokens") == _list(config.suppress_ids)
            and said.get("begin_suppress_tokens") == _list(config.suppress_ids_begin)
            and rows == list(config.lang_ids)
            and [list(pair) for pair in said.get("alignment_heads") or _later_half(config)] == _pairs(config)
        )


def _list(rows: tuple[int, ...] | None) -> list[int] | None:
    return None if rows is None else list(rows)


def _pairs(config: WhisperConfig) -> list[list[int]]:
    return [list(pair) for pair in config.alignment_heads]


def _later_half(config: WhisperConfig) -> list[tuple[int, int]]:
    layers = config.decoder_layers
    return list(product(range(layers // 2, layers), range(config.decoder_heads)))


def _languages(vocabulary: Vocabulary) -> list[int]:
    return [row for row, token in enumerate(vocabulary.tokens) if _LANGUAGE.fullmatch(token)]


def _decoding(config: WhisperConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """What generation_config.json says of decoding."""
    return {
        "suppress_tokens": _list(config.suppress_ids),
        "begin_suppress_tokens": _list(config.suppress_ids_begin),
        "lang_to_id": {vocabulary.tokens[row]: row for row in config.lang_ids},
        "alignment_heads": _pairs(config),
    }


def _rows(vocabulary: Vocabulary, keys: Mapping[str, str]) -> dict[str, Any]:
    """Key → the row of its token, of those that there are."""
    return {key: vocabulary.index[token] for key, token in keys.items() if token in vocabulary.index}


def _prompted(
    decoding: Mapping[str, Any], config: WhisperConfig, vocabulary: Vocabulary, kept: Mapping[str, Any]
) -> dict[str, Any]:
    """``decoding`` and the tokens around a text, of which the library's own defaults are English models'. Rows that
    config.json (``kept``) names stand; English models are not asked which language they hear."""
    said = {**decoding, **_rows(vocabulary, {**_IDS, **_PROMPT}), **{key: kept[key] for key in _IDS if key in kept}}
    if config.vocab_size < _MULTILINGUAL:
        languages = said.pop("lang_to_id")
        kept_apart = {} if list(languages.values()) == _languages(vocabulary) else {"lang_to_id": languages}
        return {**said, **kept_apart, "is_multilingual": False}
    tasks = _rows(vocabulary, {task: f"<|{task}|>" for task in ("transcribe", "translate")})
    return {**said, "is_multilingual": True, "task_to_id": tasks}


def _table(vocabulary: Vocabulary) -> dict[str, bytes]:
    """A tokenizer whose files are not known: its table alone."""
    return {"vocab.json": json_file({token: row for row, token in enumerate(vocabulary.tokens)})}
