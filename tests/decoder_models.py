"""Small directories of decoder-only models as transformers' ``save_pretrained`` writes them, made without transformers.

``golden/ctranslate2-decoder/models.json`` holds of each the config.json and the names and shapes of the arrays, as
transformers 5.23.0 saved them (recorded by tests/interop/test_interop_convert_decoder.py); values are random here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.formats.checkpoint import Entry, dtype_of
from warmstart.formats.safetensors import write_safetensors

GOLDEN = Path(__file__).parent / "golden" / "ctranslate2-decoder"
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}


def models() -> dict[str, dict[str, Any]]:
    """Kind → ``config`` and ``arrays`` (name → shape)."""
    return json.loads((GOLDEN / "models.json").read_text("utf-8"))


def write(folder: Path, kind: str, **values: object) -> Path:
    """A model of ``kind`` in ``folder``; ``values`` replace keys of config.json (``...`` removes one)."""
    model = models()[kind]
    config = {k: v for k, v in {**model["config"], **values}.items() if v is not ...}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    (folder / "generation_config.json").write_text('{\n  "max_length": 30\n}\n', "utf-8")
    tokenizer(folder, 48 if model["config"]["model_type"] in ("gpt2", "gptj") else 45)
    dtype = str(config.get("dtype", "float32"))
    arrays = values_of(model["arrays"], kind, dtype)
    entries = [Entry(k, v.shape, v.dtype.name) for k, v in arrays.items()]
    write_safetensors(folder / "model.safetensors", entries, arrays.values(), {"format": "pt"})
    return folder


PACKED = {"llama": ("gemm", "gemv"), "mistral": ("gemm",), "qwen3": ("gemv",), "phi3": ("gemm",)}
GROUP = 8


def write_packed(folder: Path, kind: str, layout: str) -> Path:
    """A model of ``kind`` whose layers' linear weights are packed as AutoAWQ does, in 4 bits and groups of 8."""
    said = {"quant_method": "awq", "version": layout, "bits": 4, "group_size": GROUP, "zero_point": True}
    write(folder, kind, quantization_config=said, dtype="float16")
    random = np.random.default_rng(len(layout))
    arrays: dict[str, np.ndarray] = {}
    for name, value in values_of(models()[kind]["arrays"], kind, "float16").items():
        if "proj.weight" not in name:
            arrays[name] = value
            continue
        out, into = value.shape
        zeros = -(-(into // GROUP) // 8)
        shapes = {
            "gemm": ((into, out // 8), (into // GROUP, out // 8), (into // GROUP, out)),
            "gemv": ((out, into // 8), (out, zeros), (out, zeros * 8)),
        }[layout]
        base = name.removesuffix(".weight")
        for what, shape in zip(("qweight", "qzeros"), shapes, strict=False):
            arrays[f"{base}.{what}"] = random.integers(-(2**31), 2**31, shape, np.int64).astype(np.int32)
        arrays[f"{base}.scales"] = random.random(shapes[2]).astype(np.float16)
    entries = [Entry(k, v.shape, v.dtype.name) for k, v in arrays.items()]
    write_safetensors(folder / "model.safetensors", entries, arrays.values(), {"format": "pt"})
    return folder


def activation_scales(model: Path) -> dict[str, np.ndarray]:
    """Made-up largest activations of an OPT model's layers, by the names that SmoothQuant's script gives them."""
    config = json.loads((model / "config.json").read_text("utf-8"))
    random = np.random.default_rng(5)
    return {
        f"model.decoder.layers.{i}.{part}": random.random(config["hidden_size"]).astype(np.float32) * 10
        for i in range(config["num_hidden_layers"])
        for part in ("self_attn.q_proj", "fc1")
    }


def values_of(shapes: dict[str, list[int]], kind: str, dtype: str) -> dict[str, np.ndarray]:
    """Normal values, the same each time; one norm of each model is all ones, as a fresh one is."""
    random = np.random.default_rng(sum(kind.encode()))
    arrays = {}
    for name, shape in sorted(shapes.items()):
        value = random.standard_normal(shape).astype(np.float32) * np.float32(0.1)
        if ".0." in name and len(shape) == 1 and name.endswith("layernorm.weight"):
            value[:] = 1
        arrays[name] = value.astype(dtype_of(dtype))
    return arrays


def tokenizer(folder: Path, size: int) -> None:
    """tokenizer.json of ``size`` words, and its settings."""
    words = {**SPECIAL, **{f"t{row}": row for row in range(len(SPECIAL), size)}}
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "decoder": None, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "added_tokens": [{"id": row, "content": token, **usual} for token, row in SPECIAL.items()],
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }  # fmt: skip
    settings = {
        "backend": "tokenizers", "tokenizer_class": "TokenizersBackend", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>",
    }  # fmt: skip
    for name, value in (("tokenizer.json", content), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", "utf-8")
