"""Small encoder-decoder Transformers as OpenNMT-py and fairseq save them, made without either."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

D, FF, DECODER_FF, HEADS, LAYERS, DECODER_LAYERS, ROWS, TARGET_ROWS = 16, 24, 40, 4, 2, 3, 30, 26
ONMT_KINDS = (
    *("version 3", "version 3 with biases", "version 1", "version 0.9", "shared", "aligned", "relative", "gated"),
    *("features", "features added", "rms"),
)
FEATURES = {"features": ((7, 4), (5, 2)), "features added": ((7, 16),)}
DISTANCE = 3
FAIRSEQ_KINDS = ("transformer", "pre-norm", "joined", "shared", "bart", "aligned", "cfg", "multilingual")


def _normal(seed: int):
    import torch

    random = np.random.default_rng(seed)
    return lambda *shape: torch.from_numpy((random.standard_normal(shape) * 0.1).astype(np.float32))


def tokens(rows: int, first: list[str]) -> list[str]:
    return [*first, *(f"{chr(97 + i % 26)}é{i}" for i in range(rows - len(first)))]


def write_onmt(path: Path, kind: str) -> Path:
    """A file of OpenNMT-py, ``kind`` of :data:`ONMT_KINDS`."""
    import torch

    normal = _normal(len(kind))
    newest = kind in ("version 3", "version 3 with biases", "relative", "gated", "features added", "rms")
    relative, features = kind == "relative", FEATURES.get(kind, ())
    words = D - sum(width for _, width in features) if kind == "features" else D
    shared = kind == "shared"
    target_rows = ROWS if shared else TARGET_ROWS
    bias = kind != "version 3"
    old = kind == "version 0.9"
    model: dict[str, Any] = {}
    angles = np.arange(50)[:, None] * np.exp(np.arange(0, D, 2) * -(np.log(10000.0) / D))
    interleaved = np.stack([np.sin(angles), np.cos(angles)], 2).reshape(50, 1, D)
    table = torch.from_numpy(interleaved.astype(np.float32))

    def norm(name: str) -> None:
        model[f"{name}.{'a_2' if old else 'weight'}"] = normal(D)
        if kind != "rms":
            model[f"{name}.{'b_2' if old else 'bias'}"] = normal(D)

    def linear(name: str, out: int, width: int) -> None:
        model[f"{name}.weight"] = normal(out, width)
        if bias:
            model[f"{name}.bias"] = normal(out)

    def attention(name: str) -> None:
        for part in ("linear_keys", "linear_values", "linear_query", "final_linear"):
            linear(f"{name}.{part}", D, D)

    for side, layers, inner, rows in (
        ("encoder", LAYERS, FF, ROWS),
        ("decoder", DECODER_LAYERS, DECODER_FF, target_rows),
    ):
        embeddings = f"{side}.embeddings.make_embedding"
        weight = model["encoder.embeddings.make_embedding.emb_luts.0.weight"] if shared and model else normal(rows, D)
        if features and side == "encoder":
            weight = normal(rows, words)
            for k, shape in enumerate(features):
                model[f"{embeddings}.emb_luts.{k + 1}.weight"] = normal(*shape)
        model[f"{embeddings}.emb_luts.0.weight"] = weight
        if not relative:
            model[f"{embeddings}.pe.pe"] = table
        for i in range(layers):
            at = f"{side}.transformer{'_layers' if side == 'decoder' else ''}.{i}"
            attention(f"{at}.self_attn")
            if relative:
                model[f"{at}.self_attn.relative_positions_embeddings.weight"] = normal(2 * DISTANCE + 1, D // HEADS)
            if kind == "gated":
                linear(f"{at}.feed_forward.w_3", inner, D)
            linear(f"{at}.feed_forward.w_1", inner, D)
            linear(f"{at}.feed_forward.w_2", D, inner)
            norm(f"{at}.feed_forward.layer_norm")
            norm(f"{at}.layer_norm" if side == "encoder" else f"{at}.layer_norm_1")
            if side == "decoder":
                attention(f"{at}.context_attn")
                norm(f"{at}.layer_norm_2")
                if old:
                    model[f"{at}.mask"] = torch.ones(1, 5, 5, dtype=torch.uint8)
        norm(f"{side}.layer_norm")
    zero = "" if newest else "0."
    output = model["decoder.embeddings.make_embedding.emb_luts.0.weight"] if shared else normal(target_rows, D)
    generator = {f"{zero}weight": output, f"{zero}bias": normal(target_rows)}
    opt = Namespace(
        encoder_type="transformer", decoder_type="transformer", position_encoding=not relative, enc_layers=LAYERS,
        dec_layers=DECODER_LAYERS, heads=HEADS, max_relative_positions=DISTANCE if relative else 0,
        feat_merge="sum" if kind == "features added" else "concat",
        self_attn_type="scaled-dot", share_embeddings=shared, share_decoder_embeddings=shared, dropout=[0.1],
        copy_attn=False, lambda_align=0.05 if kind == "aligned" else 0, alignment_layer=1, alignment_heads=2,
        pos_ffn_activation_fn="silu" if kind == "gated" else "gelu" if newest else "relu", generator_function="softmax",
        layer_norm="rms" if kind == "rms" else "standard",
    )  # fmt: skip
    if old:
        del opt.max_relative_positions, opt.self_attn_type, opt.pos_ffn_activation_fn, opt.lambda_align, opt.layer_norm
    source = tokens(ROWS, ["<unk>", "<blank>", "<s>", "</s>"] if shared or newest else ["<unk>", "<blank>"])
    target = source if shared else tokens(target_rows, ["<unk>", "<blank>", "<s>", "</s>"])
    with torchtext() as field:
        vocab: Any = {"src": source, "tgt": target, "decoder_start_token": "<s>"}
        more = {f"feature{k}": tokens(rows, ["<unk>", "<blank>"]) for k, (rows, _) in enumerate(features)}
        if kind == "features added":
            vocab["src_feats"] = more
        if kind in ("version 1", "shared", "aligned"):
            vocab = {"src": field("src", source, True), "tgt": field("tgt", target, True)}
        elif kind == "features":
            source_fields = field("src", source, True)
            source_fields.fields += [item for n, table in more.items() for item in field(n, table, True).fields]
            vocab = {"src": source_fields, "tgt": field("tgt", target, True)}
        elif old:
            vocab = [("src", field("src", source, False)), ("tgt", field("tgt", target, False))]
        torch.save({"model": model, "generator": generator, "vocab": vocab, "opt": opt}, path)
    return path


@contextmanager
def torchtext():
    """Classes with torchtext's names, as long as a file is written: the reader has none of them."""
    names = ("torchtext", "torchtext.data", "torchtext.data.field", "torchtext.vocab", "onmt", "onmt.inputters")
    modules = {name: ModuleType(name) for name in (*names, "onmt.inputters.text_dataset")}

    def put(module: str, name: str) -> type:
        cls = type(name, (), {"__module__": module})
        setattr(modules[module], name, cls)
        return cls

    vocabulary, field_class = put("torchtext.vocab", "Vocab"), put("torchtext.data.field", "Field")
    multi = put("onmt.inputters.text_dataset", "TextMultiField")

    def field(name: str, itos: list[str], nested: bool) -> Any:
        made = vocabulary()
        made.itos, made.stoi, made.freqs = itos, {t: i for i, t in enumerate(itos)}, Counter(itos)
        if not nested:
            return made
        inner, outer = field_class(), multi()
        inner.vocab, outer.fields = made, [(name, inner)]
        return outer

    sys.modules.update(modules)
    try:
        yield field
    finally:
        for name in modules:
            sys.modules.pop(name, None)


def load_onmt(path: Path) -> Any:
    """``torch.load`` with the classes that the file names."""
    import torch

    with torchtext():
        return torch.load(path, weights_only=False)


def fairseq_arrays(kind: str) -> dict[str, Any]:
    """The state of a fairseq model, without the prefix of its file."""
    normal = _normal(100 + len(kind))
    pre, bart = kind in ("pre-norm", "multilingual"), kind == "bart"
    one = kind in ("shared", "bart", "multilingual")
    arrays: dict[str, Any] = {}

    def both(name: str, *shape: int) -> None:
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = normal(*shape), normal(shape[0])

    for side, layers, inner in (("encoder", LAYERS, FF), ("decoder", DECODER_LAYERS, DECODER_FF)):
        first = arrays.get("encoder.embed_tokens.weight")
        rows = ROWS if side == "encoder" or one else TARGET_ROWS
        arrays[f"{side}.embed_tokens.weight"] = first if one and first is not None else normal(rows, D)
        arrays[f"{side}.version"] = normal(1)
        if bart:
            arrays[f"{side}.embed_positions.weight"] = normal(22, D)
            both(f"{side}.layernorm_embedding", D)
        else:
            arrays[f"{side}.embed_positions._float_tensor"] = normal(1)
        if pre:
            both(f"{side}.layer_norm", D)
        for i in range(layers):
            at = f"{side}.layers.{i}"
            for attention in ("self_attn", "encoder_attn")[: 1 + (side == "decoder")]:
                if kind == "joined":
                    arrays[f"{at}.{attention}.in_proj_weight"] = normal(3 * D, D)
                    arrays[f"{at}.{attention}.in_proj_bias"] = normal(3 * D)
                    both(f"{at}.{attention}.out_proj", D, D)
                else:
                    for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
                        both(f"{at}.{attention}.{part}", D, D)
                both(f"{at}.{attention}_layer_norm", D)
            both(f"{at}.fc1", inner, D)
            both(f"{at}.fc2", D, inner)
            both(f"{at}.final_layer_norm", D)
    embedding = arrays["decoder.embed_tokens.weight"]
    name = "decoder.embed_out" if kind == "joined" else "decoder.output_projection.weight"
    arrays[name] = embedding if one or kind == "transformer" else normal(*embedding.shape)
    return arrays


def fairseq_args(kind: str) -> Namespace:
    pre, bart = kind in ("pre-norm", "multilingual"), kind == "bart"
    one = kind in ("shared", "bart", "multilingual")
    arch = {"bart": "bart_base", "multilingual": "multilingual_transformer", "aligned": "transformer_align"}.get(
        kind, "transformer_iwslt_de_en"
    )
    args = Namespace(
        arch=arch, encoder_layers=LAYERS, decoder_layers=DECODER_LAYERS, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_embed_dim=D, decoder_embed_dim=D, encoder_normalize_before=pre,
        decoder_normalize_before=pre, share_all_embeddings=one, activation_fn="gelu" if bart else "relu",
        share_decoder_input_output_embed=one or kind == "transformer", layernorm_embedding=bart, dropout=0.3,
        no_scale_embedding=bart, max_source_positions=20, max_target_positions=20 if bart else 24, lr=[0.1],
        task="translation", source_lang="de", target_lang="en", adaptive_softmax_cutoff=None,
    )  # fmt: skip
    if kind == "aligned":
        args.alignment_layer, args.alignment_heads = 1, 2
    return args


def write_fairseq(folder: Path, kind: str) -> Path:
    """A file of fairseq with its dictionaries, ``kind`` of :data:`FAIRSEQ_KINDS`."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    one = kind in ("shared", "bart", "multilingual")
    for language, rows in (("de", ROWS), ("en", ROWS if one else TARGET_ROWS)):
        lines = [f"{token} {rows - i}" for i, token in enumerate(tokens(rows - 4, []))]
        (folder / f"dict.{language}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    args = fairseq_args(kind)
    arrays = fairseq_arrays(kind)
    if kind == "multilingual":
        arrays = {f"models.de-en.{name}": array for name, array in arrays.items()}
    state: dict[str, Any] = {"args": args, "model": arrays, "optimizer_history": [], "extra_state": {"epoch": 3}}
    if kind == "cfg":
        state |= {"args": None, "cfg": {"model": args, "task": {"source_lang": "de", "target_lang": "en"}}}
    torch.save(state, folder / "model.pt")
    return folder / "model.pt"


EOLE_KINDS = ("usual", "biases", "shared", "gated", "relative", "relative half", "rms")


def write_eole(folder: Path, kind: str) -> Path:
    """A directory of EOLE, ``kind`` of :data:`EOLE_KINDS`."""
    import json

    from warmstart.formats.checkpoint import Entry
    from warmstart.formats.safetensors import write_safetensors

    folder.mkdir(parents=True)
    arrays = eole_arrays(kind)
    if kind == "shared":
        del arrays["tgt_emb.embeddings.weight"], arrays["generator.weight"]
    entries = [Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()]
    write_safetensors(folder / "model.00.safetensors", entries, arrays.values(), {})
    source = tokens(ROWS, ["<unk>", "<blank>", "<s>", "</s>"])
    target = source if kind == "shared" else tokens(TARGET_ROWS, ["<unk>", "<blank>", "<s>", "</s>"])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<blank>"}
    vocabulary = {"src": source, "tgt": target, "decoder_start_token": "<s>", "specials": special}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, indent=2, ensure_ascii=False), "utf-8")
    positions: dict[str, object] = {"position_encoding_type": "SinusoidalInterleaved", "word_vec_size": D}
    if kind.startswith("relative"):
        positions |= {"position_encoding_type": "Relative", "n_positions": DISTANCE}
    heads = eole_heads(kind)
    model = {
        "architecture": "transformer", "hidden_size": D, "heads": heads, "norm_eps": 1e-6,
        "mlp_activation_fn": "gated-silu" if kind == "gated" else "gelu",
        "layer_norm": "rms" if kind == "rms" else "standard",
        "encoder": {"encoder_type": "transformer", "layers": LAYERS},
        "decoder": {"decoder_type": "transformer", "layers": DECODER_LAYERS},
        "embeddings": positions,
        "share_embeddings": kind == "shared", "share_decoder_embeddings": kind == "shared",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model": model, "training": {"batch_size": 64}}), "utf-8")
    return folder


def eole_heads(kind: str) -> int:
    """Such that √d_head is 2, or, where products by it are rounded, √8."""
    return 2 if kind.startswith("relative") else HEADS


def eole_arrays(kind: str) -> dict[str, np.ndarray]:
    """The state of an EOLE model, tied arrays under each of their names."""
    random = np.random.default_rng(200 + len(kind))
    biases, shared, relative = kind == "biases", kind == "shared", kind.startswith("relative")
    arrays: dict[str, np.ndarray] = {}

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.1).astype(np.float16 if kind.endswith("half") else np.float32)

    def linear(name: str, out: int, width: int, bias: bool = biases) -> None:
        arrays[f"{name}.weight"] = normal(out, width)
        if bias:
            arrays[f"{name}.bias"] = normal(out)

    def norm(name: str) -> None:
        arrays[f"{name}.weight"] = normal(D)
        if kind != "rms":
            arrays[f"{name}.bias"] = normal(D)

    target_rows = ROWS if shared else TARGET_ROWS
    for place, rows in (("src_emb", ROWS), ("tgt_emb", target_rows)):
        first = arrays.get("src_emb.embeddings.weight")
        arrays[f"{place}.embeddings.weight"] = first if shared and first is not None else normal(rows, D)
        if not relative:
            arrays[f"{place}.pe.pe"] = np.sin(np.arange(50 * D, dtype=np.float32)).reshape(50, 1, D)
    for side, layers, inner in (("encoder", LAYERS, FF), ("decoder", DECODER_LAYERS, DECODER_FF)):
        norm(f"{side}.layer_norm")
        for i in range(layers):
            at = f"{side}.transformer_layers.{i}"
            for attention in ("self_attn", "context_attn")[: 1 + (side == "decoder")]:
                for part in ("linear_keys", "linear_values", "linear_query", "final_linear"):
                    linear(f"{at}.{attention}.{part}", D, D)
            if relative:
                distances = normal(2 * DISTANCE + 1, D // eole_heads(kind))
                arrays[f"{at}.self_attn.relative_positions_embeddings.weight"] = distances
            for name in ("input_layernorm", "post_attention_layernorm", "precontext_layernorm")[
                : 2 + (side == "decoder")
            ]:
                norm(f"{at}.{name}")
            linear(f"{at}.mlp.gate_up_proj", inner, D)
            linear(f"{at}.mlp.down_proj", D, inner)
            if kind == "gated":
                linear(f"{at}.mlp.up_proj", inner, D)
    linear("generator", target_rows, D, True)
    if shared:
        arrays["generator.weight"] = arrays["tgt_emb.embeddings.weight"]
    return arrays
