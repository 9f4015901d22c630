"""Does a long training stay as fast and as small as it began? One tiny model, many updates, float32, one thread.

    python benchmarks/endurance.py [UPDATES]

Prints memory and time an update for each tenth of the way, and how long seeking to position 100 million takes.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from warmstart.data.batches import BatchPlan
from warmstart.data.index import Counts, EncodedSplit
from warmstart.data.plan import Position
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.module import Transformer
from warmstart.training.config import TrainingConfig
from warmstart.training.learner import Learner
from warmstart.training.loop import train
from warmstart.training.methods import Constant
from warmstart.training.terms import Measured


def resident() -> float:
    """MiB of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def split(examples: int) -> EncodedSplit:
    random = np.random.default_rng(0)
    lengths = random.integers(2, 8, (2, examples))
    sides = [(random.integers(0, 20, n.sum()).astype(np.int32), np.concatenate([[0], n.cumsum()])) for n in lengths]
    return EncodedSplit(*sides[0], *sides[1], Counts(examples, 0, 0, 0), ("", ""))


def main() -> None:
    updates = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    data = BatchPlan([split(100_000)], eos_ids=(0, 0), batch_tokens=64, window=8192)
    epochs = 100_000_000 // data.epoch_examples
    began = time.perf_counter()
    next(data.iterate(Position(epochs, data.num_windows - 1, 3)))
    print(f"seeking to position 100 million: {time.perf_counter() - began:.3f} s", flush=True)
    torch.manual_seed(0)
    sizes = {"source_vocab_size": 20, "target_vocab_size": 20, "d_model": 8, "num_heads": 2, "d_ff": 16}
    model = Transformer(TransformerConfig(**sizes, encoder_layers=1, decoder_layers=1))
    config = TrainingConfig(
        steps=updates,
        learning_rate=0.001,
        schedule=Constant(),
        precision="float32",
        evaluate_every=max(1, updates // 10),
        evaluate_first=False,
        checkpoint_every=max(1, updates // 20),
    )
    last = [0, time.perf_counter()]
    print("  update  ms/update  MiB")

    def evaluate(_: torch.nn.Module, step: int) -> Measured:
        now = time.perf_counter()
        print(f"{step:8,}  {(now - last[1]) / (step - last[0]) * 1000:9.2f}  {resident():3.0f}", flush=True)
        last[:] = [step, now]
        return Measured({"validation/loss": 1.0})

    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), Learner(model, config, 1), data, seed=1, evaluate=evaluate, progress=False)


if __name__ == "__main__":
    main()
