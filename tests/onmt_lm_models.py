"""Small random language models of EOLE and OpenNMT-py, and what they compute, in numpy."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import dataclass
from math import erf
from pathlib import Path
from typing import Any

import numpy as np

D, FF, ROWS, LAYERS, HEADS, DISTANCE = 16, 24, 23, 2, 4, 3
EPSILON = 1e-6
SPECIAL = ["<unk>", "<blank>", "<s>", "</s>"]
TOKENS = [*SPECIAL, *(f"{chr(97 + i)}é" for i in range(ROWS - len(SPECIAL)))]


@dataclass(frozen=True)
class Kind:
    """``positions``: table, rotary, alibi or relative."""

    positions: str = "table"
    activation: str = "gelu"
    rms: bool = False
    biases: bool = True
    kv_heads: int = HEADS
    pairs: bool = True
    window: int = 0
    tied: bool = False
    old: bool = False
    half: bool = False
    theta: int = 10000
    rotary_dim: int = 0
    output_bias: bool = True
    scaling: str | None = None
    head_dim: int = D // HEADS

    @property
    def gated(self) -> bool:
        return self.activation == "silu"


# What CTranslate2's converters convert.
KINDS = {
    "table": Kind(),
    "tied": Kind(tied=True, activation="relu", biases=False, half=True),
    "rotary": Kind("rotary", "silu", rms=True, biases=False, kv_heads=2),
    "halves": Kind("rotary", "silu", rms=True, biases=False, kv_heads=1, pairs=False, window=5, output_bias=False),
    "rotary with biases": Kind("rotary", "relu", tied=True, half=True),
    "alibi": Kind("alibi", "gelu", window=6),
    "relative": Kind("relative", "relu"),
    "relative, several queries a key": Kind(
        "relative", "silu", rms=True, biases=False, kv_heads=2, tied=True, half=True
    ),
}
OLD = {"old": Kind(activation="relu", kv_heads=1, old=True)}  # OpenNMT-py before 1.0, several queries a key
# What they convert, leaving out the base and the width of rotary positions.
ROTATED = {
    "base": Kind("rotary", "silu", rms=True, biases=False, theta=500, output_bias=False),
    "part": Kind("rotary", "relu", rotary_dim=2),
}
# Of EOLE alone, and again left out.
WIDE = {
    "wide": Kind("rotary", "silu", rms=True, biases=False, output_bias=False, head_dim=6),
    "relative and wide": Kind("relative", "gelu", head_dim=6),
}
# Of EOLE: angles that are stretched, which their converter leaves out; the specification has no place for the second's
# factor, which the engine reads.
SCALED = {"scaled": Kind("rotary", "relu", scaling="gemma3")}
SCALED_3 = {
    "scaled as Llama 3": Kind("rotary", "silu", rms=True, biases=False, theta=500, scaling="llama3", output_bias=False)
}
FACTOR, SHORT, LOW, HIGH = 8.0, 16, 1.0, 4.0
ALL = {**KINDS, **OLD, **ROTATED, **WIDE, **SCALED, **SCALED_3}


def arrays(name: str) -> dict[str, np.ndarray]:
    """The state by canonical module and ``weight`` or ``bias``, in layers of the framework's own layout."""
    kind, random = ALL[name], np.random.default_rng(len(name))
    found: dict[str, np.ndarray] = {}

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.3).astype(np.float16 if kind.half else np.float32)

    def linear(place: str, out: int, width: int, bias: bool) -> None:
        found[f"{place}.weight"] = normal(out, width)
        if bias:
            found[f"{place}.bias"] = normal(out)

    def norm(place: str) -> None:
        found[f"{place}.weight"] = 1 + normal(D)
        if not kind.rms:
            found[f"{place}.bias"] = normal(D)

    found["embedding.weight"] = normal(ROWS, D)
    if kind.positions == "table":
        angles = np.arange(40)[:, None] * np.exp(np.arange(0, D, 2) * -(np.log(10000.0) / D))
        table = np.stack([np.sin(angles), np.cos(angles)], 2).reshape(40, 1, D)
        found["positions"] = table.astype(np.float16 if kind.half else np.float32)
    for i in range(LAYERS):
        at = f"layers.{i}"
        norm(f"{at}.attention_norm")
        for part, rows in (("query", HEADS), ("key", kind.kv_heads), ("value", kind.kv_heads)):
            linear(f"{at}.attention.{part}", rows * kind.head_dim, D, kind.biases)
        linear(f"{at}.attention.output", D, HEADS * kind.head_dim, kind.biases)
        if kind.positions == "relative":
            found[f"{at}.attention.distances.weight"] = normal(2 * DISTANCE + 1, kind.head_dim)
        norm(f"{at}.ffn_norm")
        for part in ("gate", "up") if kind.gated else ("up",):
            linear(f"{at}.ffn.{part}", FF, D, kind.biases)
        linear(f"{at}.ffn.down", D, FF, kind.biases)
    norm("norm")
    linear("output", ROWS, D, kind.output_bias)
    if kind.tied:
        found["output.weight"] = found["embedding.weight"]
    return found


_EOLE = {
    "embedding": "tgt_emb.embeddings", "positions": "tgt_emb.pe.pe", "norm": "decoder.layer_norm",
    "output": "generator", "layers": "decoder.transformer_layers", "attention_norm": "input_layernorm",
    "attention": "self_attn", "ffn_norm": "post_attention_layernorm", "gate": "mlp.gate_up_proj", "up": "mlp.up_proj",
    "plain": "mlp.gate_up_proj", "down": "mlp.down_proj",
}  # fmt: skip
_ONMT = {
    "embedding": "decoder.embeddings.make_embedding.emb_luts.0", "norm": "decoder.layer_norm", "output": "generator",
    "positions": "decoder.embeddings.make_embedding.pe.pe", "layers": "decoder.transformer_layers",
    "attention_norm": "layer_norm_1", "attention": "self_attn", "ffn_norm": "feed_forward.layer_norm",
    "gate": "feed_forward.w_1", "up": "feed_forward.w_3", "plain": "feed_forward.w_1", "down": "feed_forward.w_2",
}  # fmt: skip
_LINEAR = {
    "query": "linear_query", "key": "linear_keys", "value": "linear_values", "output": "final_linear",
    "distances": "relative_positions_embeddings",
}  # fmt: skip


def _spelt(name: str, words: dict[str, str], gated: bool) -> str:
    module, _, what = name.rpartition(".")
    if not module:
        return words[name]
    if not module.startswith("layers."):
        return f"{words[module]}.{what}"
    _, i, part, *rest = module.split(".")
    if part == "attention":
        inner = f"{words[part]}.{_LINEAR[rest[0]]}"
    elif part == "ffn":
        inner = words["plain" if rest[0] == "up" and not gated else rest[0]]
    else:
        inner = words[part]
    return f"{words['layers']}.{i}.{inner}.{what}"


def eole_arrays(name: str) -> dict[str, np.ndarray]:
    """As EOLE's ``state_dict()``, tied arrays under both names."""
    return {_spelt(n, _EOLE, ALL[name].gated): a for n, a in arrays(name).items()}


def eole_model(name: str) -> dict[str, Any]:
    """The part ``model`` of EOLE's config.json."""
    kind = ALL[name]
    model: dict[str, Any] = {
        "architecture": "transformer_lm", "encoder": None, "hidden_size": D, "heads": HEADS, "norm_eps": EPSILON,
        "heads_kv": kind.kv_heads, "head_dim": None if kind.head_dim * HEADS == D else kind.head_dim,
        "sliding_window": kind.window, "layer_norm": "rms" if kind.rms else "standard",
        "mlp_activation_fn": "gated-silu" if kind.gated else kind.activation,
        "decoder": {"decoder_type": "transformer_lm" if kind.biases else "transformer", "layers": LAYERS},
        "embeddings": {
            "position_encoding_type": {
                "table": "SinusoidalInterleaved", "rotary": "Rotary", "alibi": "Alibi", "relative": "Relative"
            }[kind.positions],
            "n_positions": DISTANCE if kind.positions == "relative" else 0,
        },
        "share_decoder_embeddings": kind.tied,
    }  # fmt: skip
    if kind.positions == "rotary":
        rope = {"rotary_interleave": kind.pairs, "rotary_theta": kind.theta, "rotary_dim": kind.rotary_dim}
        scaling = {"scaling_factor": FACTOR, "low_freq_factor": LOW, "high_freq_factor": HIGH}
        longest = {"original_max_position_embeddings": SHORT}
        model["rope_config"] = {**rope, "scaling_type": kind.scaling, **scaling, **longest}
    return model


def write_eole(folder: Path, name: str, **changes: Any) -> Path:
    """A directory of EOLE; ``changes``: of the part ``model``."""
    from warmstart.formats.checkpoint import Entry
    from warmstart.formats.safetensors import write_safetensors

    folder.mkdir(parents=True)
    found = eole_arrays(name)
    if ALL[name].tied:
        del found["generator.weight"]
    entries = [Entry(n, array.shape, array.dtype.name) for n, array in found.items()]
    write_safetensors(folder / "model.00.safetensors", entries, found.values(), {})
    special = dict(zip(("unk_token", "pad_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    vocabulary = {"src": TOKENS, "tgt": TOKENS, "decoder_start_token": "<s>", "specials": special}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    (folder / "config.json").write_text(json.dumps({"model": {**eole_model(name), **changes}, "training": {}}), "utf-8")
    return folder


def write_onmt(path: Path, name: str, **changes: Any) -> Path:
    """A file of OpenNMT-py; ``changes``: of its options."""
    import torch

    kind = ALL[name]
    model = {_spelt(n, _ONMT, kind.gated): torch.from_numpy(a) for n, a in arrays(name).items()}
    generator = {n.partition(".")[2]: model.pop(n) for n in list(model) if n.startswith("generator.")}
    opt = Namespace(
        encoder_type="transformer_lm", decoder_type="transformer_lm", model_task="lm", enc_layers=LAYERS,
        dec_layers=LAYERS, heads=HEADS, position_encoding=kind.positions == "table",
        max_relative_positions={"table": 0, "rotary": -1, "alibi": -2, "relative": DISTANCE}[kind.positions],
        self_attn_type="scaled-dot",
        pos_ffn_activation_fn=kind.activation, layer_norm="rms" if kind.rms else "standard",
        share_decoder_embeddings=kind.tied, rotary_interleave=kind.pairs, rotary_theta=kind.theta,
        rotary_dim=kind.rotary_dim, sliding_window=kind.window, num_kv=0 if kind.old else kind.kv_heads,
        multiquery=kind.old, copy_attn=False, generator_function="softmax", dropout=[0.1],
    )  # fmt: skip
    if kind.old:
        norms = [n for n in model if "layer_norm" in n]
        for n in norms:
            model[n.replace(".weight", ".a_2").replace(".bias", ".b_2")] = model.pop(n)
        model["decoder.transformer_layers.0.mask"] = torch.ones(1, 5, 5, dtype=torch.uint8)
        generator = {f"0.{n}": a for n, a in generator.items()}
    for key, value in changes.items():
        setattr(opt, key, value)
    vocab = {"src": TOKENS, "tgt": TOKENS, "decoder_start_token": "<s>"}
    torch.save({"model": model, "generator": generator, "vocab": vocab, "opt": opt}, path)
    return path


def log_probabilities(name: str, rows: list[int], framework: str = "eole") -> np.ndarray:
    """Of every next token after each of ``rows``, as the framework computes them, in float64.

    OpenNMT-py divides queries before distances are added to scores, EOLE (``eole/modules/multi_headed_attn.py``) does
    not.
    """
    kind = ALL[name]
    a = {n: v.astype(np.float64) for n, v in arrays(name).items()}

    def linear(place: str, x: np.ndarray) -> np.ndarray:
        return x @ a[f"{place}.weight"].T + a.get(f"{place}.bias", 0.0)

    def norm(place: str, x: np.ndarray) -> np.ndarray:
        x = x if kind.rms else x - x.mean(-1, keepdims=True)
        scaled = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON)
        return scaled * a[f"{place}.weight"] + a.get(f"{place}.bias", 0.0)

    def activate(x: np.ndarray) -> np.ndarray:
        if kind.activation == "silu":
            return x / (1 + np.exp(-x))
        return np.maximum(x, 0) if kind.activation == "relu" else x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2

    def heads(x: np.ndarray, turned: bool) -> np.ndarray:
        parts = x.reshape(len(rows), -1, kind.head_dim).swapaxes(0, 1)
        parts = _rotated(kind, parts) if turned and kind.positions == "rotary" else parts
        return np.repeat(parts, HEADS // len(parts), 0)

    x = a["embedding.weight"][rows]
    if kind.positions == "table":
        x = x * np.sqrt(D) + a["positions"][: len(rows), 0]
    back = np.arange(len(rows))[:, None] - np.arange(len(rows))[None]
    slopes = 2.0 ** (-8 / HEADS * np.arange(1, HEADS + 1))
    for i in range(LAYERS):
        own, y = f"layers.{i}.attention", norm(f"layers.{i}.attention_norm", x)
        query, key = (heads(linear(f"{own}.{part}", y), True) for part in ("query", "key"))
        scores = query @ key.swapaxes(1, 2) / np.sqrt(kind.head_dim)
        vectors = np.zeros((len(rows), len(rows), kind.head_dim))
        if kind.positions == "relative":
            vectors = a[f"{own}.distances.weight"][np.clip(-back, -DISTANCE, DISTANCE) + DISTANCE]
        added = np.einsum("hqd,qkd->hqk", query, vectors)
        scores = scores + (added / np.sqrt(kind.head_dim) if framework == "opennmt-py" else added)
        if kind.positions == "alibi":
            scores = scores - slopes[:, None, None] * np.abs(back)
        scores = np.where(back < 0, -np.inf, scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        mixed = weights @ heads(linear(f"{own}.value", y), False) + np.einsum("hqk,qkd->hqd", weights, vectors)
        x = x + linear(f"{own}.output", mixed.swapaxes(0, 1).reshape(len(rows), -1))
        own, y = f"layers.{i}.ffn", norm(f"layers.{i}.ffn_norm", x)
        inner = activate(linear(f"{own}.gate", y)) * linear(f"{own}.up", y) if kind.gated else None
        x = x + linear(f"{own}.down", activate(linear(f"{own}.up", y)) if inner is None else inner)
    logits = linear("output", norm("norm", x))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _rotated(kind: Kind, x: np.ndarray) -> np.ndarray:
    """Su et al. 2021 on the first ``rotary_dim`` of each head [heads, length, head_dim]."""
    n = kind.rotary_dim or kind.head_dim
    rates = 1 / kind.theta ** (np.arange(0, n, 2) / n)
    if kind.scaling == "gemma3":
        rates = rates / FACTOR
    elif kind.scaling == "llama3":  # Llama 3.1, ``models/llama3/reference_impl/model.py``
        waves = 2 * np.pi / rates
        part = np.clip((SHORT / waves - LOW) / (HIGH - LOW), 0, 1)
        rates = (1 - part) * rates / FACTOR + part * rates
    angles = np.arange(x.shape[1])[:, None] * rates
    turn = np.cos(angles) + 1j * np.sin(angles)
    pairs = x[..., :n].reshape(*x.shape[:2], -1, 2) if kind.pairs else np.stack(np.split(x[..., :n], 2, -1), -1)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * turn
    both = np.stack([turned.real, turned.imag], -1)
    flat = both.reshape(*x.shape[:2], n) if kind.pairs else np.concatenate([both[..., 0], both[..., 1]], -1)
    return np.concatenate([flat, x[..., n:]], -1)
