"""A tiny model and endless random batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from warmstart.data.batches import Batch
from warmstart.data.plan import Position
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.module import Transformer
from warmstart.training.config import TrainingConfig
from warmstart.training.methods import InverseSqrt

VOCABULARY = 11


def make_batch(k: int, rows: int = 3) -> Batch:
    random = np.random.default_rng(k)
    lengths = random.integers(1, 6, (2, rows)).astype(np.int32)
    source, target = (random.integers(0, VOCABULARY, (rows, row.max())).astype(np.int32) for row in lengths)
    return Batch(source, lengths[0], target, lengths[1], np.zeros(rows, np.int64), np.arange(rows))


@dataclass
class Stream:
    """Batch k is a function of k; after ``fails_at`` batches reading stops with an exception, like a killed run."""

    fails_at: int | None = None
    order: int = 0

    def reordered(self, order: int) -> Stream:
        return Stream(self.fails_at, order)

    def iterate(self, position: Position) -> Iterator[tuple[Position, Batch]]:
        for k in range(position.k, 10**9):
            if k == self.fails_at:
                raise KeyboardInterrupt
            yield Position(0, 0, k + 1), make_batch(k + 1000 * self.order)


@pytest.fixture
def stream() -> type[Stream]:
    return Stream


@pytest.fixture
def batch() -> Batch:
    return make_batch(0)


@pytest.fixture
def build():  # type: ignore[no-untyped-def]
    """Makes the same tiny Transformer every time, with dropout and all embeddings tied."""

    def make(dropout: float = 0.3, seed: int = 1, rms_norm: bool = False) -> Transformer:
        torch.manual_seed(seed)
        model = Transformer(
            TransformerConfig(
                source_vocab_size=VOCABULARY,
                target_vocab_size=VOCABULARY,
                d_model=8,
                num_heads=2,
                d_ff=16,
                encoder_layers=1,
                decoder_layers=1,
                tied_embeddings="all",
                dropout=dropout,
                rms_norm=rms_norm,
            )
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
        return model

    return make


@pytest.fixture
def config() -> TrainingConfig:
    return TrainingConfig(
        steps=6,
        learning_rate=0.01,
        schedule=InverseSqrt(warmup=2),
        precision="float32",
        evaluate_every=2,
        checkpoint_every=3,
        log_every=2,
        accumulation=2,
    )
