"""Small directories of encoder-only and speech models as ``save_pretrained`` writes them, made without transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.formats.checkpoint import Entry, dtype_of
from warmstart.formats.safetensors import write_safetensors

ROWS, WIDTH, INNER, LAYERS, HEADS, POSITIONS = 30, 16, 24, 3, 4, 20
ENCODERS = ("bert", "bert-headed", "bert-float16", "distilbert", "roberta", "xlm-roberta", "camembert")

_BERT = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INNER,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute", "use_cache": True, "classifier_dropout": None,
}  # fmt: skip
_ROBERTA = {**_BERT, "layer_norm_eps": 1e-5, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
_DISTIL = {
    "dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": INNER, "activation": "gelu", "dropout": 0.1,
    "attention_dropout": 0.1, "max_position_embeddings": POSITIONS, "sinusoidal_pos_embds": False, "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2, "tie_weights_": True, "initializer_range": 0.02, "pad_token_id": 0,
}  # fmt: skip
_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", {**_BERT, "pad_token_id": 0}),
    "bert-headed": ("BertForMaskedLM", {**_BERT, "pad_token_id": 0, "hidden_act": "gelu_new"}),
    "bert-float16": ("BertModel", {**_BERT, "pad_token_id": 0, "hidden_act": "relu"}),
    "distilbert": ("DistilBertForMaskedLM", _DISTIL),
    "roberta": ("RobertaModel", _ROBERTA),
    "xlm-roberta": ("XLMRobertaForMaskedLM", _ROBERTA),
    "camembert": ("CamembertModel", {**_ROBERTA, "bos_token_id": 5, "eos_token_id": 6}),
}


def write_encoder(folder: Path, kind: str) -> Path:
    """A model of ``kind`` (of :data:`ENCODERS`) in ``folder``; random, the same each time."""
    folder.mkdir(parents=True)
    architecture, values = _CLASSES[kind]
    name = kind if kind == "xlm-roberta" else kind.partition("-")[0]
    dtype = "float16" if kind.endswith("float16") else "float32"
    config = {"architectures": [architecture], "model_type": name, "vocab_size": ROWS, "dtype": dtype, **values}
    tokenizer_of(folder, name)
    write_json(folder / "config.json", config)
    arrays = dict(_encoder(kind, name))
    return save(folder, arrays, dtype, len(kind))


def save(folder: Path, arrays: dict[str, tuple[int, ...]], dtype: str, seed: int) -> Path:
    """``arrays`` (name → shape) as random numbers."""
    random = np.random.default_rng(seed)
    made = {name: random.normal(size=shape).astype(dtype_of(dtype)) for name, shape in arrays.items()}
    entries = [Entry(name, array.shape, array.dtype.name) for name, array in made.items()]
    write_safetensors(folder / "model.safetensors", entries, made.values(), {"format": "pt"})
    return folder


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def linear(name: str, rows: int, columns: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def norm(name: str, width: int = WIDTH) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _encoder(kind: str, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    headed = kind in ("bert-headed", "distilbert", "xlm-roberta")
    prefix = {"bert": "bert.", "distilbert": "distilbert."}.get(name, "roberta.") if headed else ""
    yield f"{prefix}embeddings.word_embeddings.weight", (ROWS, WIDTH)
    yield f"{prefix}embeddings.position_embeddings.weight", (POSITIONS, WIDTH)
    yield from norm(f"{prefix}embeddings.LayerNorm")
    distil = name == "distilbert"
    if not distil:
        yield f"{prefix}embeddings.token_type_embeddings.weight", (2, WIDTH)
    for i in range(LAYERS):
        if distil:
            layer = f"{prefix}transformer.layer.{i}"
            for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
                yield from linear(f"{layer}.attention.{part}", WIDTH, WIDTH)
            yield from norm(f"{layer}.sa_layer_norm")
            yield from linear(f"{layer}.ffn.lin1", INNER, WIDTH)
            yield from linear(f"{layer}.ffn.lin2", WIDTH, INNER)
            yield from norm(f"{layer}.output_layer_norm")
            continue
        layer = f"{prefix}encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            yield from linear(f"{layer}.attention.{part}", WIDTH, WIDTH)
        yield from norm(f"{layer}.attention.output.LayerNorm")
        yield from linear(f"{layer}.intermediate.dense", INNER, WIDTH)
        yield from linear(f"{layer}.output.dense", WIDTH, INNER)
        yield from norm(f"{layer}.output.LayerNorm")
    if not headed or kind == "bert-headed":
        yield from linear(f"{prefix}pooler.dense", WIDTH, WIDTH)
    if kind == "bert-headed":
        yield "cls.predictions.bias", (ROWS,)
        yield from linear("cls.predictions.transform.dense", WIDTH, WIDTH)
        yield from norm("cls.predictions.transform.LayerNorm")
    if distil:
        yield from linear("vocab_transform", WIDTH, WIDTH)
        yield from norm("vocab_layer_norm")
        yield "vocab_projector.bias", (ROWS,)
    if name == "xlm-roberta":
        yield "lm_head.bias", (ROWS,)
        yield from linear("lm_head.dense", WIDTH, WIDTH)
        yield from norm("lm_head.layer_norm")


def tokenizer_of(folder: Path, name: str) -> None:
    """tokenizer.json and its settings, with fewer tokens than BERT's model has rows."""
    if name in ("bert", "distilbert"):
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        count = ROWS - 3 if name == "bert" else ROWS
        model: dict[str, Any] = {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {t: i for i, t in enumerate([*special, *(f"##p{i}" for i in range(count - 5))])},
        }  # fmt: skip
        named = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
        kind = {"bert": "BertTokenizer", "distilbert": "DistilBertTokenizer"}[name]
    else:
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        if name == "camembert":
            special = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
        pieces = [*special, *(f"▁w{i}é" for i in range(ROWS - 1 - len(special))), "<mask>"]
        if name == "roberta":
            vocab = {t: i for i, t in enumerate(pieces)}
            model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": None, "byte_fallback": False}
        else:
            scored = [[t, -float(i)] for i, t in enumerate(pieces)]
            model = {"type": "Unigram", "vocab": scored, "unk_id": special.index("<unk>"), "byte_fallback": False}
        rows = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"}
        named = {role: special.index(token) for role, token in rows.items()} | {"mask": ROWS - 1}
        special = [*special, "<mask>"]
        kinds = {"roberta": "RobertaTokenizer", "xlm-roberta": "XLMRobertaTokenizer", "camembert": "CamembertTokenizer"}
        kind = kinds[name]
    tokens = list(model["vocab"]) if isinstance(model["vocab"], dict) else [t for t, _ in model["vocab"]]
    write_tokenizer(folder, model, tokens, special, {f"{k}_token": tokens[row] for k, row in named.items()}, kind)


def write_tokenizer(
    folder: Path, model: dict[str, Any], tokens: list[str], added: list[str], named: dict[str, str], kind: str
) -> None:
    """tokenizer.json around ``model``; ``added`` are its special tokens, ``named`` those that have a role."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": tokens.index(t), "content": t, **flags} for t in added],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": model,
    }  # fmt: skip
    write_json(folder / "tokenizer.json", content)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": kind, **named})


WHISPERS = ("whisper", "whisper-plain", "whisper-float16")
MEL, FRAMES, TEXT = 10, 12, 14


def write_whisper(folder: Path, kind: str) -> Path:
    """Whisper, with all that its decoder needs to know or (``plain``) none of it."""
    folder.mkdir(parents=True)
    plain, dtype = kind.endswith("plain"), "float16" if kind.endswith("float16") else "float32"
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|haw|>", "<|translate|>", "<|transcribe|>"]
    special += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokens = [*(f"Ġp{i}" for i in range(8)), *special]
    rows = len(tokens) + (0 if plain else 5)
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens[:9])}, "merges": [], "unk_token": None}
    named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    write_tokenizer(folder, model, tokens, special, named, "WhisperTokenizer")
    config = {
        "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "vocab_size": rows,
        "num_mel_bins": MEL, "d_model": WIDTH, "encoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_layers": LAYERS, "decoder_attention_heads": HEADS, "encoder_ffn_dim": INNER,
        "decoder_ffn_dim": INNER + 8, "max_source_positions": FRAMES, "max_target_positions": TEXT,
        "activation_function": "gelu", "is_encoder_decoder": True, "scale_embedding": False, "dropout": 0.0,
        "pad_token_id": 8, "bos_token_id": 8, "eos_token_id": 8, "decoder_start_token_id": 9, "dtype": dtype,
        "suppress_tokens": [1, 2], "begin_suppress_tokens": [3, 8],
    }  # fmt: skip
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", {"feature_size": MEL, "sampling_rate": 16000})
    generation = {"suppress_tokens": [1, 2, 4], "begin_suppress_tokens": [3, 8], "lang_to_id": {"<|haw|>": 11}}
    generation |= {"alignment_heads": [[1, 0], [2, 3]], "max_length": 12, "eos_token_id": 8, "pad_token_id": 8}
    generation["lang_to_id"]["<|en|>"] = 10
    if not plain:
        write_json(folder / "generation_config.json", generation)
    return save(folder, dict(_whisper(rows)), dtype, 17)


def _whisper(rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, columns in (("conv1", MEL), ("conv2", WIDTH)):
        yield f"model.encoder.{name}.weight", (WIDTH, columns, 3)
        yield f"model.encoder.{name}.bias", (WIDTH,)
    yield "model.encoder.embed_positions.weight", (FRAMES, WIDTH)
    yield "model.decoder.embed_positions.weight", (TEXT, WIDTH)
    yield "model.decoder.embed_tokens.weight", (rows, WIDTH)
    for side, layers, inner in (("encoder", 2, INNER), ("decoder", LAYERS, INNER + 8)):
        yield from norm(f"model.{side}.layer_norm")
        for i in range(layers):
            layer = f"model.{side}.layers.{i}"
            for attention in ("self_attn", "encoder_attn") if side == "decoder" else ("self_attn",):
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    yield from linear(f"{layer}.{attention}.{part}", WIDTH, WIDTH, part != "k_proj")
                yield from norm(f"{layer}.{attention}_layer_norm")
            yield from linear(f"{layer}.fc1", inner, WIDTH)
            yield from linear(f"{layer}.fc2", WIDTH, inner)
            yield from norm(f"{layer}.final_layer_norm")


WAV2VEC2S = ("wav2vec2", "wav2vec2-hidden", "wav2vec2-float16", "wav2vec2-bert", "wav2vec2-bert-float16")
D, CHANNELS = 32, 12
_LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIé"]


def write_wav2vec2(folder: Path, kind: str) -> Path:
    """A model with CTC's outputs and a table of letters in the order of its rows."""
    folder.mkdir(parents=True)
    bert, dtype = "bert" in kind, "float16" if kind.endswith("float16") else "float32"
    write_json(folder / "vocab.json", {letter: row for row, letter in enumerate(_LETTERS)})
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "Wav2Vec2CTCTokenizer", **settings})
    write_json(folder / "preprocessor_config.json", {"feature_size": 1, "sampling_rate": 16000})
    config: dict[str, Any] = {
        "vocab_size": len(_LETTERS), "hidden_size": D, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
        "intermediate_size": INNER, "layer_norm_eps": 1e-5, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "dtype": dtype, "hidden_dropout": 0.1, "ctc_loss_reduction": "mean", "mask_time_prob": 0.05,
    }  # fmt: skip
    if bert:
        config |= {
            "architectures": ["Wav2Vec2BertForCTC"], "model_type": "wav2vec2-bert", "hidden_act": "swish",
            "feature_projection_input_dim": MEL, "left_max_position_embeddings": 6, "right_max_position_embeddings": 2,
            "conv_depthwise_kernel_size": 31, "add_adapter": True, "num_adapter_layers": 2,
            "position_embeddings_type": "relative_key",
        }  # fmt: skip
    else:
        config |= {
            "architectures": ["Wav2Vec2ForCTC"], "model_type": "wav2vec2", "hidden_act": "gelu",
            "feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True,
            "conv_dim": [CHANNELS, CHANNELS, CHANNELS + 4], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 2],
            "num_feat_extract_layers": 3,
        }  # fmt: skip
    if kind.endswith("hidden"):
        config["return_hidden"] = True
    write_json(folder / "config.json", config)
    arrays = dict(_conformer() if bert else _wav2vec2())
    arrays |= dict(linear("lm_head", len(_LETTERS), D))
    return save(folder, arrays, dtype, len(kind))


def _wav2vec2() -> Iterator[tuple[str, tuple[int, ...]]]:
    w, before = "wav2vec2", 1
    for i, (channels, width) in enumerate(((CHANNELS, 10), (CHANNELS, 3), (CHANNELS + 4, 2))):
        yield f"{w}.feature_extractor.conv_layers.{i}.conv.weight", (channels, before, width)
        yield f"{w}.feature_extractor.conv_layers.{i}.conv.bias", (channels,)
        yield from norm(f"{w}.feature_extractor.conv_layers.{i}.layer_norm", channels)
        before = channels
    yield from norm(f"{w}.feature_projection.layer_norm", before)
    yield from linear(f"{w}.feature_projection.projection", D, before)
    yield f"{w}.encoder.pos_conv_embed.conv.bias", (D,)
    yield f"{w}.encoder.pos_conv_embed.conv.parametrizations.weight.original0", (1, 1, 128)
    yield f"{w}.encoder.pos_conv_embed.conv.parametrizations.weight.original1", (D, D // 16, 128)
    yield f"{w}.masked_spec_embed", (D,)
    yield from norm(f"{w}.encoder.layer_norm", D)
    for i in range(LAYERS):
        layer = f"{w}.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{layer}.attention.{part}", D, D)
        yield from norm(f"{layer}.layer_norm", D)
        yield from linear(f"{layer}.feed_forward.intermediate_dense", INNER, D)
        yield from linear(f"{layer}.feed_forward.output_dense", D, INNER)
        yield from norm(f"{layer}.final_layer_norm", D)


def _conformer() -> Iterator[tuple[str, tuple[int, ...]]]:
    w = "wav2vec2_bert"
    yield from norm(f"{w}.feature_projection.layer_norm", MEL)
    yield from linear(f"{w}.feature_projection.projection", D, MEL)
    yield f"{w}.masked_spec_embed", (D,)
    for i in range(LAYERS):
        layer = f"{w}.encoder.layers.{i}"
        for ffn in ("ffn1", "ffn2"):
            yield from norm(f"{layer}.{ffn}_layer_norm", D)
            yield from linear(f"{layer}.{ffn}.intermediate_dense", INNER, D)
            yield from linear(f"{layer}.{ffn}.output_dense", D, INNER)
        yield from norm(f"{layer}.self_attn_layer_norm", D)
        for part in ("q", "k", "v", "out"):
            yield from linear(f"{layer}.self_attn.linear_{part}", D, D)
        yield f"{layer}.self_attn.distance_embedding.weight", (9, D // HEADS)
        yield from norm(f"{layer}.conv_module.layer_norm", D)
        yield f"{layer}.conv_module.pointwise_conv1.weight", (2 * D, D, 1)
        yield f"{layer}.conv_module.depthwise_conv.weight", (D, 1, 31)
        yield from norm(f"{layer}.conv_module.depthwise_layer_norm", D)
        yield f"{layer}.conv_module.pointwise_conv2.weight", (D, D, 1)
        yield from norm(f"{layer}.final_layer_norm", D)
    for i in range(2):
        layer = f"{w}.adapter.layers.{i}"
        for branch in ("residual", "self_attn"):
            yield from norm(f"{layer}.{branch}_layer_norm", D)
            yield f"{layer}.{branch}_conv.weight", (2 * D, D, 3)
            yield f"{layer}.{branch}_conv.bias", (2 * D,)
        for part in ("q", "k", "v", "out"):
            yield from linear(f"{layer}.self_attn.linear_{part}", D, D)
        yield from norm(f"{layer}.ffn_layer_norm", D)
        yield from linear(f"{layer}.ffn.intermediate_dense", INNER, D)
        yield from linear(f"{layer}.ffn.output_dense", D, INNER)


KINDS = (*ENCODERS, *WHISPERS, *WAV2VEC2S)


def write(folder: Path, kind: str) -> Path:
    """A model of ``kind`` (of :data:`KINDS`) in ``folder``."""
    of = {**dict.fromkeys(ENCODERS, write_encoder), **dict.fromkeys(WHISPERS, write_whisper)}
    return of.get(kind, write_wav2vec2)(folder, kind)


def small_engine(monkeypatch: Any) -> None:
    """wav2vec2-BERT as small as here: the engine has one size, which would make these tests heavy."""
    from warmstart.models.wav2vec2_bert.dialects import ctranslate2

    monkeypatch.setattr(ctranslate2, "ENGINE", {})
