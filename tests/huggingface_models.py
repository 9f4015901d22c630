"""Small directories as transformers' ``save_pretrained`` writes them, made without transformers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.formats.checkpoint import Entry, dtype_of
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.safetensors import write_safetensors

WIDTH, INNER, DECODER_INNER, LAYERS, DECODER_LAYERS, HEADS, POSITIONS = 16, 24, 40, 2, 3, 4, 20
PIECES = 40
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
KINDS = (
    "marian", "marian-untied", "marian-float16", "bart", "bart-untied", "mbart", "mbart50", "pegasus", "m2m", "nllb",
    "nllb-untied",
)  # fmt: skip

_CLASSES = {
    "marian": ("MarianMTModel", {"scale_embedding": True, "activation_function": "swish"}),
    "bart": (
        "BartForConditionalGeneration",
        {"normalize_before": False, "normalize_embedding": True, "activation_function": "gelu"},
    ),
    "mbart": (
        "MBartForConditionalGeneration",
        {
            "normalize_before": True,
            "normalize_embedding": True,
            "scale_embedding": True,
            "activation_function": "gelu_new",
        },
    ),
    "pegasus": (
        "PegasusForConditionalGeneration",
        {
            "normalize_before": True,
            "normalize_embedding": False,
            "scale_embedding": True,
            "activation_function": "relu",
        },
    ),
    "m2m_100": ("M2M100ForConditionalGeneration", {"scale_embedding": True, "activation_function": "relu"}),
}
_IDS = {
    "marian": {"pad_token_id": PIECES, "eos_token_id": 0, "decoder_start_token_id": PIECES, "bos_token_id": None},
    "pegasus": {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
}
_USUAL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}


def write(folder: Path, kind: str) -> Path:
    """A model of ``kind`` (of :data:`KINDS`) in ``folder``; random, the same each time."""
    folder.mkdir(parents=True)
    name = kind.partition("-")[0]
    name = {"mbart50": "mbart", "m2m": "m2m_100", "nllb": "m2m_100"}.get(name, name)
    rows = _tokenizer(folder, kind if name == "marian" else kind.partition("-")[0])
    architecture, values = _CLASSES[name]
    dtype = "float16" if kind.endswith("float16") else "float32"
    config: dict[str, Any] = {
        "architectures": [architecture], "model_type": name, "vocab_size": rows, "d_model": WIDTH, "dtype": dtype,
        "encoder_layers": LAYERS, "decoder_layers": DECODER_LAYERS, "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS, "encoder_ffn_dim": INNER, "decoder_ffn_dim": DECODER_INNER,
        "max_position_embeddings": POSITIONS, "is_encoder_decoder": True, "dropout": 0.1, "use_cache": True,
        **values, **_IDS.get(name, _USUAL),
    }  # fmt: skip
    if kind == "mbart50":
        config["tokenizer_class"] = "MBart50Tokenizer"
    if kind.endswith("untied"):
        config["share_encoder_decoder_embeddings" if name == "marian" else "tie_word_embeddings"] = False
    _json(folder / "config.json", config)
    _json(folder / "generation_config.json", {"max_length": 30, "num_beams": 4})
    arrays = {k: v.astype(dtype_of(dtype)) for k, v in _arrays(name, rows, kind).items()}
    entries = [Entry(k, v.shape, v.dtype.name) for k, v in arrays.items()]
    write_safetensors(folder / "model.safetensors", entries, arrays.values(), {"format": "pt"})
    return folder


def _arrays(name: str, rows: int, kind: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(len(kind))

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32) * np.float32(0.1)

    arrays: dict[str, np.ndarray] = {}

    def both(prefix: str, *shape: int) -> None:
        arrays[f"{prefix}.weight"] = normal(*shape)
        arrays[f"{prefix}.bias"] = normal(shape[0])

    tables = ["encoder.embed_tokens", "decoder.embed_tokens"] if kind.endswith("untied") else ["shared"]
    if kind.endswith("untied") and name != "marian":  # as transformers 5 makes them: one more that nothing uses
        tables.append("shared")
        arrays["lm_head.weight"] = normal(rows, WIDTH)
    for table in tables:
        arrays[f"model.{table}.weight"] = normal(rows, WIDTH)
        if name == "marian":
            arrays[f"model.{table}.weight"][-1] = 0
    if name != "m2m_100":
        arrays["final_logits_bias"] = np.zeros((1, rows), np.float32)
    if kind == "marian":
        arrays["final_logits_bias"][0, :-1] = normal(rows - 1)
    for side, layers, inner in (("encoder", LAYERS, INNER), ("decoder", DECODER_LAYERS, DECODER_INNER)):
        if name in ("bart", "mbart"):
            arrays[f"model.{side}.embed_positions.weight"] = normal(POSITIONS + 2, WIDTH)
            both(f"model.{side}.layernorm_embedding", WIDTH)
        if name in ("mbart", "pegasus", "m2m_100"):
            both(f"model.{side}.layer_norm", WIDTH)
        for i in range(layers):
            at = f"model.{side}.layers.{i}"
            for attention in ("self_attn", "encoder_attn")[: 1 + (side == "decoder")]:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    both(f"{at}.{attention}.{part}", WIDTH, WIDTH)
                both(f"{at}.{attention}_layer_norm", WIDTH)
            both(f"{at}.fc1", inner, WIDTH)
            both(f"{at}.fc2", WIDTH, inner)
            both(f"{at}.final_layer_norm", WIDTH)
    return dict(sorted(arrays.items()))


def _json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def _tokenizer(folder: Path, kind: str) -> int:
    """Files of the tokenizer; how many rows the model has."""
    usual = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "sep_token": "</s>"}
    pieces = [f"▁{chr(97 + i % 26)}{i}é" for i in range(PIECES)]
    if kind.startswith("marian"):
        table = {"</s>": 0, "<unk>": 1, **{piece: 2 + i for i, piece in enumerate(pieces[: PIECES - 2])}}
        (folder / "vocab.json").write_text(json.dumps({**table, "<pad>": PIECES}), "utf-8")
        for side in ("source", "target"):
            (folder / f"{side}.spm").write_bytes(sentencepiece())
        settings = {k: usual[k] for k in ("eos_token", "unk_token", "pad_token")}
        _json(folder / "tokenizer_config.json", {**settings, "tokenizer_class": "MarianTokenizer"})
        return PIECES + 1
    if kind == "m2m":
        table = {token: row for row, token in enumerate([*SPECIAL, *pieces])}
        (folder / "vocab.json").write_text(json.dumps(table), "utf-8")
        (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece())
        languages = [f"__{code}__" for code in LANGUAGES]
        own = {**usual, "tokenizer_class": "M2M100Tokenizer", "language_codes": "m2m100", "num_madeup_words": 8}
        _json(folder / "tokenizer_config.json", {**own, "additional_special_tokens": languages})
        return len(table) + len(languages) + 8
    if kind == "pegasus":
        first = ["<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, 103)), "<unk>"]
        tokens, cls = [*first, *pieces], "PegasusTokenizer"
        usual = {k: usual[k] for k in ("eos_token", "unk_token", "pad_token")}
        usual |= {"mask_token": "<mask_2>", "mask_token_sent": "<mask_1>", "offset": 103}
        added = first
    else:
        cls = {"bart": "BartTokenizer", "mbart": "MBartTokenizer", "mbart50": "MBart50Tokenizer"}.get(
            kind, "NllbTokenizer"
        )
        codes = {"mbart": MBART, "mbart50": MBART50, "nllb": ["eng_Latn", "fra_Latn"]}.get(kind, [])
        tokens = [*SPECIAL, *pieces, *codes, "<mask>"]
        added = [*SPECIAL, *codes, "<mask>"]
        usual |= {"cls_token": "<s>", "mask_token": "<mask>"}
        if codes:
            usual |= {"extra_special_tokens" if kind == "nllb" else "additional_special_tokens": codes}
            usual |= {"src_lang": codes[0], "tgt_lang": codes[1]}
    _json(folder / "tokenizer_config.json", {**usual, "tokenizer_class": cls})
    rows = {token: row for row, token in enumerate(tokens)}
    model: dict[str, Any] = {"type": "BPE", "vocab": rows, "merges": [], "unk_token": "<unk>"}
    if kind in ("mbart", "mbart50", "pegasus"):
        scores = [[token, 0.0 if token in added else -float(row)] for row, token in enumerate(tokens)]
        model = {"type": "Unigram", "unk_id": rows["<unk>"], "vocab": scores, "byte_fallback": False}
    how = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None,
        "post_processor": None, "decoder": None, "model": model,
        "added_tokens": [{"id": rows[token], "content": token, **how} for token in added],
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return len(tokens) + (3 if kind == "nllb" else 0)


def sentencepiece(pieces: int = 20, **options: object) -> bytes:
    """A small SentencePiece model."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    text = [" ".join(f"{a}{b}" for a in "abcdefgh" for b in "ijkl")] * 3
    SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        vocab_size=pieces,
        minloglevel=3,
        hard_vocab_limit=False,
        **options,
    )
    return model.getvalue()


# fmt: off
LANGUAGES = str.split(
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu hy "
    "id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt ro ru "
    "sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
)
MBART = str.split(
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP "
    "nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
MBART50 = MBART + str.split(
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE "
    "ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)


def change(folder: Path, **values: object) -> None:
    """Other ``values`` in the directory's ``config.json``; ``...`` takes a key out."""
    config = json.loads((folder / "config.json").read_text())
    config = {k: v for k, v in {**config, **values}.items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """The directory's arrays, as ``edit`` leaves them."""
    checkpoint = open_checkpoint(folder / "model.safetensors")
    arrays = {name: np.array(checkpoint.read(name)) for name in checkpoint.entries}
    edit(arrays)
    entries = [Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()]
    write_safetensors(folder / "model.safetensors", entries, arrays.values(), {})
