"""The arrays of one encoder-decoder, as several frameworks name them: 12 + 12 layers by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import yaml

from warmstart.formats.checkpoint import Array, Entry
from warmstart.formats.marian import write_marian
from warmstart.formats.safetensors import write_safetensors
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.dialects.marian import MarianDialect
from warmstart.models.transformer.parameters import parameters
from warmstart.spec.mapping import expand, write_through

Shapes = Iterator[tuple[str, tuple[int, ...]]]
VOCABULARY, D, D_FF = 50, 8, 32


def huggingface(layers: int = 12) -> Shapes:
    """BART."""
    yield "model.shared.weight", (VOCABULARY, D)
    for side, attentions in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "encoder_attn"))):
        yield f"model.{side}.embed_positions.weight", (16, D)
        for i in range(layers):
            at = f"model.{side}.layers.{i}"
            for attention in attentions:
                for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
                    yield from _linear(f"{at}.{attention}.{part}", D, D)
                yield from _norm(f"{at}.{attention}_layer_norm")
            yield from _linear(f"{at}.fc1", D_FF, D)
            yield from _linear(f"{at}.fc2", D, D_FF)
            yield from _norm(f"{at}.final_layer_norm")
    yield "lm_head.weight", (VOCABULARY, D)


def _linear(name: str, rows: int, columns: int) -> Shapes:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def _norm(name: str) -> Shapes:
    yield f"{name}.weight", (D,)
    yield f"{name}.bias", (D,)


def t5x(layers: int = 12) -> Shapes:
    """T5 1.1 as T5X names it; the first decoder layer has one array more."""
    yield "target/token_embedder/embedding", (VOCABULARY, D)
    for side, attentions in (("encoder", ("attention",)), ("decoder", ("self_attention", "encoder_decoder_attention"))):
        for i in range(layers):
            at = f"target/{side}/layers_{i}"
            for attention in attentions:
                for part in ("query", "key", "value", "out"):
                    yield f"{at}/{attention}/{part}/kernel", (D, D)
                yield f"{at}/pre_{attention}_layer_norm/scale", (D,)
            if side == "decoder" and i == 0:
                yield f"{at}/relpos_bias/rel_embedding", (2, 32)
            for part in ("wi_0", "wi_1"):
                yield f"{at}/mlp/{part}/kernel", (D, D_FF)
            yield f"{at}/mlp/wo/kernel", (D_FF, D)


def tensorflow() -> Shapes:
    """DeepSpeech, as TensorFlow names it."""
    for i, width in ((1, D), (2, D), (3, D), (5, D), (6, 29)):
        yield f"layer_{i}/weights", (D, width)
        yield f"layer_{i}/bias", (width,)
    yield "cudnn_lstm/rnn/multi_rnn_cell/cell_0/cudnn_compatible_lstm_cell/kernel", (2 * D, 4 * D)
    yield "cudnn_lstm/rnn/multi_rnn_cell/cell_0/cudnn_compatible_lstm_cell/bias", (4 * D,)


def numbers(seed: int = 0) -> Callable[[tuple[int, ...]], Array]:
    """Multiples of 1/8 between -1 and 1, so that every sum of them is exact on any machine."""
    chance = np.random.default_rng(seed)
    return lambda shape: (chance.integers(-8, 9, shape) / 8).astype(np.float32)


def write(path: Path, shapes: Shapes, seed: int = 0, **metadata: str) -> dict[str, Array]:
    """A safetensors file of these arrays, which are returned."""
    fill = numbers(seed)
    arrays = {name: fill(shape) for name, shape in shapes}
    save(path, arrays, **metadata)
    return arrays


def save(path: Path, arrays: dict[str, Array], **metadata: str) -> None:
    entries = [Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()]
    write_safetensors(path, entries, arrays.values(), metadata)


def write_marian_model(path: Path, layers: int = 12, seed: int = 0, **changes: object) -> None:
    """A Marian npz with tied target embeddings."""
    config = TransformerConfig.model_validate(
        {
            "source_vocab_size": VOCABULARY,
            "target_vocab_size": VOCABULARY,
            "d_model": D,
            "num_heads": 2,
            "d_ff": D_FF,
            "encoder_layers": layers,
            "decoder_layers": layers,
            "tied_embeddings": "target",
            **changes,
        }
    )
    dialect, fill = MarianDialect(), numbers(seed)
    arrays = {p.storage: fill(p.shape) for p in parameters(config)}
    foreign = write_through(expand(dialect.rules(config)), arrays.__getitem__, arrays)
    write_marian(path, yaml.safe_dump(dialect.options(config)), ((name, compute()) for name, compute in foreign))
