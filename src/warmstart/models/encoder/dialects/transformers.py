"""How ``transformers`` spells the encoder-only Transformer: BERT, DistilBERT, RoBERTa, XLM-RoBERTa and CamemBERT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from warmstart.formats.checkpoint import Checkpoint
from warmstart.lean import dataclass
from warmstart.models.encoder.config import EncoderConfig
from warmstart.models.family import Facts
from warmstart.models.huggingface import ACTIVATIONS, CONFIG, TOKENIZER_FILES, activation_of, folder_of
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
from warmstart.spec.lossy import ExtraRows
from warmstart.spec.mapping import Rule, rule
from warmstart.vocabularies.sentencepiece import SentencePieceVocabulary
from warmstart.vocabularies.subwords import ROLES, SubwordVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

# Family's key → key of config.json.
_USUAL = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers", "d_ff": "intermediate_size", "activation": "hidden_act",
    "max_positions": "max_position_embeddings", "token_types": "type_vocab_size",
    "layer_norm_epsilon": "layer_norm_eps", "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}  # fmt: skip
_DISTIL = {
    "vocab_size": "vocab_size", "d_model": "dim", "num_heads": "n_heads", "num_layers": "n_layers",
    "d_ff": "hidden_dim", "activation": "activation", "max_positions": "max_position_embeddings",
    "dropout": "dropout", "attention_dropout": "attention_dropout",
}  # fmt: skip
_DEFAULTS: dict[str, Any] = {
    "max_positions": 512, "token_types": 2, "layer_norm_epsilon": 1e-12, "dropout": 0.1, "attention_dropout": 0.1,
}  # fmt: skip

# Module of the layer → the family's.
_LAYER = {
    "attention.self.query": "self_attention.query", "attention.self.key": "self_attention.key",
    "attention.self.value": "self_attention.value", "attention.output.dense": "self_attention.output",
    "attention.output.LayerNorm": "self_attention_norm", "intermediate.dense": "ffn.up", "output.dense": "ffn.down",
    "output.LayerNorm": "ffn_norm",
}  # fmt: skip
_DISTIL_LAYER = {
    "attention.q_lin": "self_attention.query", "attention.k_lin": "self_attention.key",
    "attention.v_lin": "self_attention.value", "attention.out_lin": "self_attention.output",
    "sa_layer_norm": "self_attention_norm", "ffn.lin1": "ffn.up", "ffn.lin2": "ffn.down",
    "output_layer_norm": "ffn_norm",
}  # fmt: skip

_WORDPIECE = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
_SENTENCE = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>",
    "cls_token": "<s>", "mask_token": "<mask>",
}  # fmt: skip
_IGNORED = {
    "*_token_id": "of the tokenizer",
    "tie_word_embeddings": "of a head of language modelling",
    "tie_weights_": "of a head of language modelling",
    "tie_encoder_decoder": "of another model that this one may be a part of",
    "qa_dropout": "of a head",
    "seq_classif_dropout": "of a head",
    "sinusoidal_pos_embds": "how the stored positions were made",
    "directionality": "of a head, as TensorFlow's first BERT had it",
    "pooler_*": "of a head, as TensorFlow's first BERT had it",
    "output_past": "a setting of generation",
    "sentence_transformers": "how states are compared",
    "sbert_*": "how states are compared",
    "xla_device": "where it was trained",
}


@dataclass(frozen=True)
class _Kind:
    """One class of ``transformers``: names of its arrays and of its options, and its tokenizer's special tokens.

    Attributes:
        padded: its tokenizer's table is filled up to the model's rows.
    """

    architecture: str
    prefix: str
    layers: str = "encoder.layer"
    keys: Mapping[str, str] = field(default_factory=lambda: _USUAL)
    layer: Mapping[str, str] = field(default_factory=lambda: _LAYER)
    special: Mapping[str, str] = field(default_factory=lambda: _SENTENCE)
    pooler: bool = True
    offset: bool = True
    padded: bool = False


KINDS = {
    "bert": _Kind("BertModel", "bert", special=_WORDPIECE, offset=False, padded=True),
    "distilbert": _Kind(
        "DistilBertModel", "distilbert", "transformer.layer", _DISTIL, _DISTIL_LAYER, _WORDPIECE, False, False
    ),
    "roberta": _Kind("RobertaModel", "roberta"),
    "xlm-roberta": _Kind("XLMRobertaModel", "roberta", pooler=False),
    "camembert": _Kind("CamembertModel", "roberta"),
}
_TABLE = "embeddings.word_embeddings.weight"
# A SentencePiece model's table where no other lies beside it: the rows that stand in place of its first pieces, and how
# many these are (`tokenization_{xlm_roberta,camembert}.py` of transformers).
_PIECES = "sentencepiece.bpe.model"
_BEFORE = {
    "XLMRobertaTokenizer": (("<s>", "<pad>", "</s>", "<unk>"), 3),
    "CamembertTokenizer": (("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"), 1),
}
_CLASSES = {"xlm-roberta": "XLMRobertaTokenizer", "camembert": "CamembertTokenizer"}  # where no file names one
_HEADS = ("cls.**", "lm_head.**", "classifier.**", "pre_classifier.**", "qa_outputs.**", "vocab_*.**", "vocab_*")


class TransformersDialect(PretrainedDialect):
    """Weights [out, in]; names of the bare model, without the head that was trained on it."""

    types = tuple(KINDS)

    def today(self, name: str) -> str:
        for prefix in dict.fromkeys(kind.prefix for kind in KINDS.values()):
            name = name.removeprefix(f"{prefix}.")
        for old, new in ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")):
            name = f"{name.removesuffix(old)}{new}" if name.endswith(old) else name
        return name

    def left_behind(self, config: EncoderConfig) -> Mapping[str, str]:
        reasons = dict.fromkeys(_HEADS, "a head: an encoder gives states")
        pooler = {} if KINDS[config.architecture].pooler else {"pooler.**": "the class that is converted has none"}
        numbers = dict.fromkeys(("embeddings.position_ids", "embeddings.token_type_ids"), "the numbers of rows")
        return {**reasons, **numbers, **pooler}

    def read_config(self, checkpoint: Checkpoint) -> EncoderConfig:
        loaded = self.view(checkpoint)
        options = options_of(loaded)
        name = str(options.get("model_type"))
        kind = KINDS[name]
        values: dict[str, Any] = {"architecture": name, "token_types": 0}
        for key, theirs in kind.keys.items():
            if key == "activation":
                values[key] = activation_of(options, theirs, "gelu")
            elif isinstance(_DEFAULTS.get(key), float):
                values[key] = options.get(theirs, _DEFAULTS[key])
            else:
                values[key] = options.whole(theirs, *([_DEFAULTS[key]] if key in _DEFAULTS else []))
        if kind.offset:
            row = options.get("pad_token_id", 1)
            values["position_offset"] = row + 1 if isinstance(row, int) and row >= 0 else 0
            values["max_positions"] -= values["position_offset"]
        values["pooler"] = kind.pooler and "pooler.dense.weight" in loaded.entries
        options.expect("position_embedding_type", "absolute")
        for switch in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
            options.expect(switch, False)
        options.expect("pruned_heads", {}, None)
        options.expect("cross_attention_hidden_size", None)
        ignore(options, _IGNORED)
        return validated(EncoderConfig, values, options, kind.architecture)

    def vocabulary(self, loaded: Checkpoint) -> SubwordVocabulary:
        kind = KINDS[loaded.metadata["config"]["model_type"]]
        files = _with_table(loaded.metadata["tokenizer"], loaded.metadata["config"])
        tokenizer = read_tokenizer(files, folder_of(loaded), kind.special)
        tokens = list(tokenizer.tokens)
        if kind.padded:
            tokens += [f"<extra_id_{i}>" for i in range(rows_of(loaded, _TABLE) - len(tokens))]
        special = {role: tokenizer.special.get(f"{role}_token") for role in ROLES}
        return SubwordVocabulary(tokens, special, kept_files(loaded))

    def rules(self, config: EncoderConfig) -> list[Rule]:
        kind = KINDS[config.architecture]
        positions = ExtraRows(first=config.position_offset) if config.position_offset else None
        rules = [
            rule(_TABLE, "embedding.weight"),
            rule("embeddings.position_embeddings.weight", "positions.weight", positions),
            *both("embeddings.LayerNorm", "embedding_norm"),
        ]
        if config.token_types:
            rules.append(rule("embeddings.token_type_embeddings.weight", "token_types.weight"))
        for theirs, ours in kind.layer.items():
            rules += both(f"{kind.layers}.{{i}}.{theirs}", f"layers.{{i}}.{ours}", {"i": config.num_layers})
        return rules + (both("pooler.dense", "pooler") if config.pooler else [])

    def files(self, config: EncoderConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts) -> Mapping[str, bytes]:
        vocabulary, kind = vocabularies[SIDE], KINDS[config.architecture]
        kept = object_of(vocabulary, CONFIG)
        if kept.get("model_type") != config.architecture:
            kept = {}
        values: dict[str, Any] = {"model_type": config.architecture}
        values |= {theirs: getattr(config, key) for key, theirs in kind.keys.items()}
        values[kind.keys["max_positions"]] = config.max_positions + config.position_offset
        activation = kept.get(kind.keys["activation"])
        if ACTIVATIONS.get(str(activation)) != config.activation:
            activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)
        values[kind.keys["activation"]] = activation
        if kind.offset:
            values["pad_token_id"] = config.position_offset - 1
        if not kept:
            values |= {"architectures": [kind.architecture], "position_embedding_type": "absolute"}
        values |= dtype_key(kept, facts)
        values = {k: v for k, v in values.items() if k in kept or kept.get(k, _implied(k)) != v or not kept}
        files = {CONFIG: updated(vocabulary if kept else None, CONFIG, values), **beside(vocabulary, (CONFIG,))}
        return files if any(name in files for name in TOKENIZER_FILES) else {**files, **_table(vocabulary, kind)}


def _with_table(files: Mapping[str, bytes], config: Mapping[str, Any]) -> Mapping[str, bytes]:
    """``files`` with the pieces of a SentencePiece model as the table, where there is no other."""
    if _PIECES not in files or {"tokenizer.json", "vocab.json", "vocab.txt"} & set(files):
        return files
    try:
        settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):  # read_tokenizer says what is wrong with it
        return files
    said = settings.get("tokenizer_class") or config.get("tokenizer_class") or _CLASSES.get(config["model_type"])
    known = _BEFORE.get(str(said).removesuffix("Fast"))
    if known is None:
        return files
    before, instead = known
    rows: dict[str, int] = {}
    for row, token in enumerate([*before, *SentencePieceVocabulary(files[_PIECES]).tokens[instead:], "<mask>"]):
        rows.setdefault(token, row)
    return {**files, "vocab.json": json.dumps(rows).encode("ascii")}


def _implied(key: str) -> object:
    """What the library takes for a key that is not there."""
    known = {_USUAL[ours]: value for ours, value in _DEFAULTS.items()}
    return {**known, **{_DISTIL[k]: v for k, v in _DEFAULTS.items() if k in _DISTIL}, "pad_token_id": 1}.get(key)


def _table(vocabulary: Vocabulary, kind: _Kind) -> dict[str, bytes]:
    """A tokenizer whose files are not known: its table alone, in the file that BERT's has."""
    return {"vocab.txt": "".join(f"{token}\n" for token in vocabulary.tokens).encode("utf-8")}
