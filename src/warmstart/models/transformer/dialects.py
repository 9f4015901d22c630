"""How Marian and CTranslate2 spell the encoder-decoder Transformer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.errors import DialectError, Problem, VocabularyError
from warmstart.formats.checkpoint import Array, Checkpoint
from warmstart.models.transformer.config import TransformerConfig
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Generated, Reshape, Split, Transpose
from warmstart.vocabularies.vocabulary import Vocabulary

_ROW = Reshape((1, -1), (-1,))
_ATTENTIONS = {"self": "self_attention", "context": "cross_attention"}


def sinusoids(length: int, d_model: int) -> Array:
    """Marian's table of positions [length, d_model], float32: sin(p·f) beside cos(p·f), f_k = 10000^(-k/(d/2-1)).

    Source: marian-dev ``src/tensors/cpu/tensor_operators.cpp``, SinusoidalPositionEmbeddings.
    """
    half = d_model // 2
    increment = math.log(10000.0) / (half - 1) if half > 1 else 0.0
    angles = np.arange(length)[:, None] * np.exp(np.arange(half) * -increment)[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _sides(c: TransformerConfig) -> list[tuple[str, int, tuple[str, ...]]]:
    return [("encoder", c.encoder_layers, ("self",)), ("decoder", c.decoder_layers, ("self", "context"))]


@dataclass(frozen=True)
class MarianDialect:
    """``.npz`` of Marian: 1-based layers, weights [in, out], biases and norms [1, n]."""

    name: str = "marian"

    def recognise(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.format == "marian"

    def read_config(self, checkpoint: Checkpoint) -> TransformerConfig:
        options = checkpoint.metadata.get("config")
        if not isinstance(options, Mapping):
            raise DialectError(
                "the file holds no model options (special:model.yml)",
                where=checkpoint.path,
                todo="give the architecture under `model:` in the configuration and say `strict: false`",
            )
        problems = [
            Problem(f"{key}: {options.get(key)!r} is not supported", expected=" or ".join(map(repr, allowed)))
            for key, allowed in _MARIAN_ALLOWED.items()
            if key in options and options[key] not in allowed
        ]
        processing = " ".join(
            str(options.get(f"transformer-{key}") or "-") for key in ("preprocess", "postprocess", "postprocess-top")
        )
        norm = {"- dan -": "post", "n da n": "pre"}.get(processing)
        if norm is None:
            problems.append(
                Problem(
                    f"transformer-preprocess, -postprocess, -postprocess-top are {processing!r}",
                    expected="'- dan -' (post-norm) or 'n da n' (pre-norm)",
                )
            )
        sizes = options.get("dim-vocabs")
        if not isinstance(sizes, list) or len(sizes) != 2:
            problems.append(Problem("dim-vocabs must hold two sizes", found=repr(sizes)))
        if problems:
            raise DialectError("this Marian model is not supported", where=checkpoint.path, problems=problems)
        training = checkpoint.metadata.get("options") or {}
        learned = checkpoint.entries.get("Wpos")
        tied = "all" if options.get("tied-embeddings-all") else "target" if options.get("tied-embeddings") else "none"
        try:
            return TransformerConfig(
                source_vocab_size=sizes[0],  # type: ignore[index]
                target_vocab_size=sizes[1],  # type: ignore[index]
                d_model=options["dim-emb"],
                num_heads=options["transformer-heads"],
                d_ff=options["transformer-dim-ffn"],
                decoder_d_ff=options.get("transformer-decoder-dim-ffn") or None,
                encoder_layers=options["enc-depth"],
                decoder_layers=options["dec-depth"],
                activation=options.get("transformer-ffn-activation", "swish"),
                norm=norm,
                normalize_keys=norm == "post" or _normalizes_keys(options.get("version"), checkpoint.path),
                tied_embeddings=tied,
                output_bias=not options.get("output-omit-bias", False),
                positions="learned" if learned else "sinusoidal",
                max_positions=learned.shape[0] if learned else None,
                scale_embeddings=learned is None,
                dropout=training.get("transformer-dropout", 0.1),
                attention_dropout=training.get("transformer-dropout-attention", 0.0),
                ffn_dropout=training.get("transformer-dropout-ffn", 0.0),
                source_dropout=training.get("dropout-src", 0.0),
                target_dropout=training.get("dropout-trg", 0.0),
            )
        except (KeyError, ValueError) as error:
            raise DialectError(
                "the model options are incomplete or wrong", where=checkpoint.path, found=error
            ) from None

    def rules(self, config: TransformerConfig) -> list[Rule]:
        c = config
        rules: list[Rule] = []
        if c.tied_embeddings == "all":
            rules.append(rule("Wemb", "encoder.embedding.weight"))
        else:
            rules.append(rule("encoder_Wemb", "encoder.embedding.weight"))
            rules.append(rule("decoder_Wemb", "decoder.embedding.weight"))
        if c.tied_embeddings == "none":
            rules.append(rule("decoder_ff_logit_out_Wt", "decoder.output.weight"))
        if c.output_bias:
            rules.append(rule("decoder_ff_logit_out_b", "decoder.output.bias", _ROW))
        if c.positions == "learned":
            rules.append(rule("Wpos", "positions.weight"))
        suffix = "_pre" if c.norm == "pre" else ""
        for side, layers, attentions in _sides(c):
            each = {"i": layers}
            theirs, ours = f"{side}_l{{i+1}}_", f"{side}.layers.{{i}}."
            for short in attentions:
                a = _ATTENTIONS[short]
                for letter, part in zip("qkvo", ("query", "key", "value", "output"), strict=True):
                    rules.append(rule(f"{theirs}{short}_W{letter}", f"{ours}{a}.{part}.weight", Transpose(), each=each))
                    rules.append(rule(f"{theirs}{short}_b{letter}", f"{ours}{a}.{part}.bias", _ROW, each=each))
                rules += _marian_norm(f"{theirs}{short}_Wo", suffix, f"{ours}{a}_norm", each)
            for number, part in (("1", "up"), ("2", "down")):
                rules.append(rule(f"{theirs}ffn_W{number}", f"{ours}ffn.{part}.weight", Transpose(), each=each))
                rules.append(rule(f"{theirs}ffn_b{number}", f"{ours}ffn.{part}.bias", _ROW, each=each))
            rules += _marian_norm(f"{theirs}ffn_ffn", suffix, f"{ours}ffn_norm", each)
            if c.norm == "pre":
                rules += _marian_norm(f"{side}_top", "", f"{side}.norm", {})
        return rules

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        from warmstart.vocabularies.load import load_vocabulary

        here = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        paths = [Path(f) for f in files]
        if not paths:
            listed = (checkpoint.metadata.get("decoder") or {}).get("vocabs") or []
            paths = [here / Path(str(name)) for name in listed]
        if not paths:
            return {}
        if len(paths) == 1:
            paths = paths * 2
        if len(paths) != 2:
            raise VocabularyError("a translation model has two vocabularies", where=here, found=len(paths))
        return dict(zip(("source", "target"), map(load_vocabulary, paths), strict=True))

    def options(self, config: TransformerConfig) -> dict[str, Any]:
        """Marian's model options for ``special:model.yml``."""
        c = config
        pre = c.norm == "pre"
        version = "v1.12.0" if c.normalize_keys else "v1.9.0"
        return {
            "type": "transformer",
            "dim-vocabs": [c.source_vocab_size, c.target_vocab_size],
            "dim-emb": c.d_model,
            "enc-depth": c.encoder_layers,
            "dec-depth": c.decoder_layers,
            "transformer-heads": c.num_heads,
            "transformer-dim-ffn": c.d_ff,
            "transformer-decoder-dim-ffn": c.decoder_d_ff or 0,
            "transformer-ffn-activation": c.activation,
            "transformer-preprocess": "n" if pre else "",
            "transformer-postprocess": "da" if pre else "dan",
            "transformer-postprocess-top": "n" if pre else "",
            "transformer-train-position-embeddings": c.positions == "learned",
            "tied-embeddings": c.tied_embeddings == "target",
            "tied-embeddings-all": c.tied_embeddings == "all",
            "tied-embeddings-src": False,
            "output-omit-bias": not c.output_bias,
            **_MARIAN_FIXED,
            "version": version,
        }


_MARIAN_FIXED: dict[str, Any] = {
    "transformer-decoder-autoreg": "self-attention",
    "transformer-ffn-depth": 2,
    "transformer-decoder-ffn-depth": 0,
    "transformer-no-projection": False,
    "transformer-no-bias": False,
    "transformer-no-affine": False,
    "transformer-pool": False,
    "transformer-tied-layers": [],
    "transformer-postprocess-emb": "d",
    "transformer-guided-alignment-layer": "last",
    "transformer-attention-mask": "default",
    "transformer-disable-position-embeddings": False,
    "input-types": [],
    "lemma-dim-emb": 0,
    "factors-dim-emb": 0,
    "factors-combine": "sum",
    "layer-normalization": False,
    "right-left": False,
    "skip": False,
    "ulr": False,
}

_MARIAN_ALLOWED: dict[str, tuple[object, ...]] = {
    "type": ("transformer",),
    "transformer-decoder-autoreg": ("self-attention",),
    "transformer-ffn-activation": ("relu", "swish", "gelu"),
    "transformer-ffn-depth": (2,),
    "transformer-decoder-ffn-depth": (0, 2),
    "transformer-no-projection": (False,),
    "transformer-no-bias": (False,),
    "transformer-no-affine": (False,),
    "transformer-pool": (False,),
    "transformer-tied-layers": ([], None),
    "transformer-postprocess-emb": ("d", ""),
    "transformer-attention-mask": ("default",),
    "transformer-disable-position-embeddings": (False,),
    "tied-embeddings-src": (False,),
    "input-types": ([], None),
    "lemma-dim-emb": (0,),
    "factors-dim-emb": (0,),
    "right-left": (False,),
    "ulr": (False,),
}


def _normalizes_keys(version: object, where: Path) -> bool:
    """Whether a pre-norm model was trained with normalised keys and values: by Marian since February 2022
    (marian-dev commit 8da539e8, inside version 1.10.28)."""
    text = str(version or "")
    date = re.search(r"(\d{4})-(\d{2})-(\d{2})", text)
    number = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
    if date:
        return date.groups() >= ("2022", "02", "06")
    if number and tuple(map(int, number.groups())) != (1, 10, 28):
        return tuple(map(int, number.groups())) > (1, 10, 28)
    raise DialectError(
        "a pre-norm model does not say which Marian trained it; since February 2022 keys and values are normalised",
        where=where,
        found=f"version {version!r}",
        todo="put `version: v1.9.0` (older) or `version: v1.12.0` (newer) into special:model.yml",
    )


def _marian_norm(theirs: str, suffix: str, ours: str, each: Mapping[str, int]) -> list[Rule]:
    return [
        rule(f"{theirs}_ln_scale{suffix}", f"{ours}.weight", _ROW, each=each),
        rule(f"{theirs}_ln_bias{suffix}", f"{ours}.bias", _ROW, each=each),
    ]


@dataclass(frozen=True)
class CTranslate2Dialect:
    """``model.bin`` of CTranslate2 (TransformerSpec): weights [out, in], Q‖K‖V joined, positions written out."""

    name: str = "ctranslate2"
    max_length: int = 2048

    def recognise(self, checkpoint: Checkpoint) -> bool:
        return False  # export only

    def read_config(self, checkpoint: Checkpoint) -> TransformerConfig:
        raise DialectError("CTranslate2 models are written, not read", where=checkpoint.path)

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        raise DialectError("CTranslate2 models are written, not read", where=checkpoint.path)

    def rules(self, config: TransformerConfig) -> list[Rule]:
        c = config
        if not c.normalize_keys:
            raise DialectError(
                "CTranslate2 always normalises keys and values; this model was trained without",
                todo="use `warmstart translate` with the native engine, or train it further with normalize_keys: true",
            )
        if c.decoder_layers == 0 or c.encoder_layers == 0:
            raise DialectError("CTranslate2 needs layers on both sides")
        shared = "encoder.embedding.weight" if c.tied_embeddings == "all" else "decoder.embedding.weight"
        rules = [rule("decoder/embeddings/weight", shared)]
        if c.tied_embeddings != "all":
            rules.append(rule("encoder/embeddings_0/weight", "encoder.embedding.weight"))
        if c.tied_embeddings == "none":
            rules.append(rule("decoder/projection/weight", "decoder.output.weight"))
        if c.output_bias:
            rules.append(rule("decoder/projection/bias", "decoder.output.bias"))
        encodings = "decoder/position_encodings/encodings"
        if c.positions == "learned":
            rules.append(rule(encodings, "positions.weight"))
        else:
            table = partial(sinusoids, self.max_length, c.d_model)
            rules.append(rule(encodings, (), Generated(table, (self.max_length, c.d_model))))
        scalars = self._scalars(c)
        rules += [rule(name, (), Generated(partial(np.asarray, value), ())) for name, value in scalars.items()]
        for side, layers, _ in _sides(c):
            if c.norm == "pre":
                rules += self._norm(f"{side}/layer_norm", f"{side}.norm", {})
            each = {"i": layers}
            theirs, ours = f"{side}/layer_{{i}}", f"{side}.layers.{{i}}"
            for what in ("weight", "bias"):
                parts = [f"{ours}.self_attention.{p}.{what}" for p in ("query", "key", "value")]
                rules.append(rule(f"{theirs}/self_attention/linear_0/{what}", parts, Split(3), each=each))
                rules += [
                    rule(f"{theirs}/self_attention/linear_1/{what}", f"{ours}.self_attention.output.{what}", each=each),
                    rule(f"{theirs}/ffn/linear_0/{what}", f"{ours}.ffn.up.{what}", each=each),
                    rule(f"{theirs}/ffn/linear_1/{what}", f"{ours}.ffn.down.{what}", each=each),
                ]
                if side == "decoder":
                    x = f"{ours}.cross_attention"
                    rules += [
                        rule(f"{theirs}/attention/linear_0/{what}", f"{x}.query.{what}", each=each),
                        rule(
                            f"{theirs}/attention/linear_1/{what}",
                            [f"{x}.key.{what}", f"{x}.value.{what}"],
                            Split(2),
                            each=each,
                        ),
                        rule(f"{theirs}/attention/linear_2/{what}", f"{x}.output.{what}", each=each),
                    ]
            rules += self._norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attention_norm", each)
            rules += self._norm(f"{theirs}/ffn/layer_norm", f"{ours}.ffn_norm", each)
            if side == "decoder":
                rules += self._norm(f"{theirs}/attention/layer_norm", f"{ours}.cross_attention_norm", each)
        return rules

    def aliases(self, config: TransformerConfig) -> dict[str, str]:
        """Names that share another's array: ties of the model, and positions used on both sides."""
        shared = "decoder/embeddings/weight"
        out = {}
        if config.tied_embeddings != "none":
            out["decoder/projection/weight"] = shared
        if config.tied_embeddings == "all":
            out["encoder/embeddings_0/weight"] = shared
        out["encoder/position_encodings/encodings"] = "decoder/position_encodings/encodings"
        return out

    def _norm(self, theirs: str, ours: str, each: Mapping[str, int]) -> list[Rule]:
        return [
            rule(f"{theirs}/gamma", f"{ours}.weight", each=each),
            rule(f"{theirs}/beta", f"{ours}.bias", each=each),
        ]

    def _scalars(self, c: TransformerConfig) -> dict[str, Any]:
        activation = {"relu": 0, "swish": 2, "gelu": 4}[c.activation]
        flags: dict[str, Any] = {
            "encoder/embeddings_merge": np.int8(0),
            "encoder/multi_query_attention": np.int8(0),
            "decoder/alibi": np.int8(0),
            "decoder/alibi_use_positive_positions": np.int8(0),
            "decoder/scale_alibi": np.int8(0),
            "decoder/alignment_layer": np.int16(-1),
            "decoder/alignment_heads": np.int16(1),
            "decoder/start_from_zero_embedding": np.int8(1),
        }
        for side in ("encoder", "decoder"):
            flags[f"{side}/activation"] = np.int8(activation)
            flags[f"{side}/num_heads"] = np.int16(c.num_heads)
            flags[f"{side}/pre_norm"] = np.int8(c.norm == "pre")
            flags[f"{side}/scale_embeddings"] = np.float32(math.sqrt(c.d_model) if c.scale_embeddings else 1.0)
        return flags
