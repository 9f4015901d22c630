"""Small models of T5 and its successors as transformers keeps them, made by numpy: what transformers itself would have
written (tests/interop/test_interop_convert_t5.py loads them), or what lies on the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.formats.checkpoint import Array, Entry, dtype_of
from warmstart.formats.safetensors import write_safetensors

SIZES: dict[str, Any] = {
    "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4, "vocab_size": 56,
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
}  # fmt: skip
_GATED = {"feed_forward_proj": "gated-gelu"}
_NEW = {"transformers_version": "5.23.0", "tie_word_embeddings": True}  # which it says of every model
_HUB = {"transformers_version": "4.23.0", "tie_word_embeddings": False, "torch_dtype": "float32"}

# name → keys of config.json; `output`: whether there is an output layer of its own
KINDS: dict[str, dict[str, Any]] = {
    "t5": {"model_type": "t5", **_NEW, "scale_decoder_outputs": True},
    "t5-old": {"model_type": "t5", "n_positions": 512, "output_past": True, "task_specific_params": {"x": {"a": "b"}}},
    "t5-1.1": {"model_type": "t5", **_GATED, **_HUB, "output": True},
    "t5-1.1-tied": {"model_type": "t5", **_GATED, **_NEW, "scale_decoder_outputs": False},
    "t5-silu": {"model_type": "t5", "feed_forward_proj": "gated-silu", **_NEW, "scale_decoder_outputs": True},
    "mt5": {"model_type": "mt5", **_GATED, **_HUB, "output": True, "tokenizer_class": "T5Tokenizer"},
    "umt5": {"model_type": "umt5", **_GATED, **_NEW, "output": True},
    "umt5-tied": {"model_type": "umt5", **_GATED, **_NEW},
    "byt5": {
        "model_type": "t5", **_GATED, **_HUB, "output": True, "tokenizer_class": "ByT5Tokenizer", "vocab_size": 384,
        "num_decoder_layers": 1,
    },
    "t5-half": {"model_type": "t5", **_NEW, "scale_decoder_outputs": True, "dtype": "bfloat16"},
}  # fmt: skip


def names(options: dict[str, Any], output: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the arrays."""
    d, inner, d_ff = options["d_model"], options["num_heads"] * options["d_kv"], options["d_ff"]
    gated = str(options.get("feed_forward_proj", "relu")).startswith("gated")
    yield "shared.weight", (options["vocab_size"], d)
    for side, layers in (("encoder", "num_layers"), ("decoder", "num_decoder_layers")):
        for i in range(options[layers]):
            kinds = ("SelfAttention", "EncDecAttention")[: 1 if side == "encoder" else 2]
            for k, kind in enumerate(kinds):
                block = f"{side}.block.{i}.layer.{k}"
                yield from ((f"{block}.{kind}.{letter}.weight", (inner, d)) for letter in "qkv")
                yield f"{block}.{kind}.o.weight", (d, inner)
                yield f"{block}.layer_norm.weight", (d,)
                if k == 0 and (i == 0 or options["model_type"] == "umt5"):
                    table = (options["relative_attention_num_buckets"], options["num_heads"])
                    yield f"{block}.{kind}.relative_attention_bias.weight", table
            block = f"{side}.block.{i}.layer.{len(kinds)}"
            for name in ("wi_0", "wi_1") if gated else ("wi",):
                yield f"{block}.DenseReluDense.{name}.weight", (d_ff, d)
            yield f"{block}.DenseReluDense.wo.weight", (d, d_ff)
            yield f"{block}.layer_norm.weight", (d,)
        yield f"{side}.final_layer_norm.weight", (d,)
    if output:
        yield "lm_head.weight", (options["vocab_size"], d)


def write(folder: Path, kind: str, **changes: Any) -> Path:
    """A model of ``KINDS[kind]`` with its tokenizer in ``folder``; ``changes`` are to its config.json."""
    options = {**SIZES, **KINDS[kind], **changes}
    output = options.pop("output", False)
    dtype = options.get("dtype", "float32")
    rng = np.random.default_rng(11)
    arrays: dict[str, Array] = {
        name: rng.normal(scale=0.4, size=shape).astype(np.float32).astype(dtype_of(dtype))
        for name, shape in names(options, output)
    }
    folder.mkdir(parents=True)
    entries = [Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()]
    write_safetensors(folder / "model.safetensors", entries, arrays.values(), {"format": "pt"})
    config = {"is_encoder_decoder": True, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, **options}
    dump(folder / "config.json", config)
    dump(folder / "generation_config.json", {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0})
    if kind == "byt5":
        dump(folder / "tokenizer_config.json", {**SPECIAL, "extra_ids": 0, "tokenizer_class": "ByT5Tokenizer"})
        dump(folder / "added_tokens.json", {f"<extra_id_{k}>": 259 + k for k in range(125)})
    else:
        tokenizer(folder)
    return folder


SPECIAL = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
SENTINELS = [f"<extra_id_{k}>" for k in range(10)]
PIECES = [*("<pad>", "</s>", "<unk>"), *(f"{'▁' * (k % 2)}w{k}" for k in range(37)), *reversed(SENTINELS)]


def tokenizer(folder: Path) -> None:
    """A tokenizer.json of pieces and ten sentinels, as T5's class writes it."""
    special = [*SPECIAL.values(), *SENTINELS]
    added = [
        {"id": PIECES.index(t), "content": t, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for t in sorted(special, key=PIECES.index)
    ]  # fmt: skip
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": None, "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": [[p, -float(k)] for k, p in enumerate(PIECES)],
                  "byte_fallback": False},
    }  # fmt: skip
    dump(folder / "tokenizer.json", content)
    settings = {**SPECIAL, "extra_ids": 10, "extra_special_tokens": SENTINELS, "tokenizer_class": "T5Tokenizer"}
    dump(folder / "tokenizer_config.json", settings)


def dump(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
