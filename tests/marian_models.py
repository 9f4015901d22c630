"""Small random models as Marian and OPUS-MT leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

OPTIONS: dict[str, Any] = {
    "type": "transformer",
    "dim-vocabs": [37, 41],
    "dim-emb": 16,
    "enc-depth": 2,
    "dec-depth": 3,
    "transformer-heads": 4,
    "transformer-dim-ffn": 24,
    "transformer-decoder-autoreg": "self-attention",
    "transformer-no-projection": False,
    "transformer-ffn-activation": "swish",
    "transformer-preprocess": "",
    "transformer-postprocess": "dan",
    "transformer-postprocess-top": "",
    "transformer-postprocess-emb": "d",
    "transformer-guided-alignment-layer": "last",
    "tied-embeddings": False,
    "tied-embeddings-all": False,
    "version": "v1.12.0 65bf82ff 2023-02-21",
}
PRE = {"transformer-preprocess": "n", "transformer-postprocess": "da", "transformer-postprocess-top": "n"}


def arrays(options: dict[str, Any], *, seed: int = 0, positions: int = 0, untied: str = "Wt") -> dict[str, np.ndarray]:
    """Every array that Marian would hold for ``options``, float32, no two equal."""
    rng = np.random.default_rng(seed)
    d, f = options["dim-emb"], options["transformer-dim-ffn"]
    source, target = options["dim-vocabs"]
    pre = options["transformer-preprocess"] == "n"
    out: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int) -> None:
        out[name] = rng.normal(0, 0.3, shape).astype(np.float32)

    if options["tied-embeddings-all"]:
        add("Wemb", source, d)
    else:
        add("encoder_Wemb", source, d)
        add("decoder_Wemb", target, d)
    if not options["tied-embeddings-all"] and not options["tied-embeddings"]:
        add(f"decoder_ff_logit_out_{untied}", *((target, d) if untied == "Wt" else (d, target)))
    if not options.get("output-omit-bias"):
        add("decoder_ff_logit_out_b", 1, target)
    if positions:
        add("Wpos", positions, d)
    norm = "_pre" if pre else ""
    for side, layers in (("encoder", options["enc-depth"]), ("decoder", options["dec-depth"])):
        for i in range(1, layers + 1):
            for attention in ("self", "context") if side == "decoder" else ("self",):
                p = f"{side}_l{i}_{attention}"
                for letter in "qkvo":
                    add(f"{p}_W{letter}", d, d)
                    add(f"{p}_b{letter}", 1, d)
                add(f"{p}_Wo_ln_scale{norm}", 1, d)
                add(f"{p}_Wo_ln_bias{norm}", 1, d)
            p, width = f"{side}_l{i}_ffn", (options.get("transformer-decoder-dim-ffn") if side == "decoder" else 0) or f
            add(f"{p}_W1", d, width)
            add(f"{p}_b1", 1, width)
            add(f"{p}_W2", width, d)
            add(f"{p}_b2", 1, d)
            add(f"{p}_ffn_ln_scale{norm}", 1, d)
            add(f"{p}_ffn_ln_bias{norm}", 1, d)
        if pre:
            add(f"{side}_top_ln_scale", 1, d)
            add(f"{side}_top_ln_bias", 1, d)
        if "n" in options["transformer-postprocess-emb"]:
            add(f"{side}_emb_ln_scale_pre", 1, d)
            add(f"{side}_emb_ln_bias_pre", 1, d)
    return out


def tokens(count: int, mark: str) -> list[str]:
    """Tokens that test how a vocabulary is spelt."""
    odd = [
        "</s>",
        "<unk>",
        "no",
        "null",
        "1",
        "~",
        ":",
        "a:b",
        "'",
        "''",
        '"',
        "#",
        "- x".replace(" ", "▁"),
        "é",
        "▁",
        "\\",
    ]
    return (odd + [f"{mark}{n}" for n in range(count)])[:count]


def write(
    folder: Path, options: dict[str, Any], contents: dict[str, np.ndarray], *, opus: bool = False, nul: int = 1
) -> Path:
    """A model directory: ``model.npz``, vocabularies and ``model.npz.decoder.yml``, or as OPUS-MT ships it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(options).encode() + b"\0" * nul
    np.savez(folder / "model.npz", **contents, **{"special:model.yml": np.frombuffer(text, np.int8)})
    one = options["tied-embeddings-all"]
    names = ["vocab.yml", "vocab.yml"] if one else ["vocab.src.yml", "vocab.trg.yml"]
    for name, count in zip(names, options["dim-vocabs"], strict=True):
        lines = [f"{_spelt(token)}: {row}\n" for row, token in enumerate(tokens(count, "x" if one else name[6]))]
        (folder / name).write_text("".join(lines), "utf-8")
    decoder = {"models": ["model.npz"], "vocabs": names, "beam-size": 6, "normalize": 1, "relative-paths": True}
    (folder / ("decoder.yml" if opus else "model.npz.decoder.yml")).write_text(yaml.safe_dump(decoder))
    return folder


def _spelt(token: str) -> str:
    """As Marian's vocabularies quote."""
    return '"' + token.replace("\\", "\\\\").replace('"', '\\"') + '"'
