"""Small checkpoints as Coqui's trainer leaves them, with random values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.formats.checkpoint import Array
from warmstart.formats.tensorflow import write_bundle, write_state
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.dialects.coqui import CoquiDialect
from warmstart.models.deepspeech.dialects.flags import flags_of
from warmstart.models.deepspeech.family import DeepSpeechFamily
from warmstart.testing import random_arrays, written

FAMILY = DeepSpeechFamily()
COQUI, CUDNN = CoquiDialect(), CoquiDialect("coqui-cudnn", cudnn=True)
CELL = "cudnn_lstm/rnn/multi_rnn_cell/cell_0/cudnn_compatible_lstm_cell"
OPAQUE = "cudnn_lstm/opaque_kernel"
LABELS = "abcdef"


def config(**changes: Any) -> DeepSpeechConfig:
    keys = {"vocab_size": len(LABELS) + 1, "n_hidden": 6, "sample_rate": 8000}
    return DeepSpeechConfig(**{**keys, **changes})


def tensors(c: DeepSpeechConfig, *, cudnn: bool = False, slots: bool = True, seed: int = 0) -> dict[str, Array]:
    """Everything in a checkpoint of ``c`` after 12 updates."""
    dialect = CUDNN if cudnn else COQUI
    found = written(FAMILY, c, dialect, random_arrays(FAMILY, c, seed=seed))
    if slots:
        trained = [name for name in found if not (cudnn and name.startswith(CELL))]
        for k, ending in enumerate(("Adam", "Adam_1")):
            states = written(FAMILY, c, dialect, random_arrays(FAMILY, c, seed=seed + 1 + k))
            found |= {f"{name}/{ending}": np.abs(states[name]) for name in trained}
        if cudnn:  # states of both biases are one
            for ending in ("Adam", "Adam_1"):
                state, rows = found[f"{OPAQUE}/{ending}"], 4 * c.n_hidden
                state[-rows:] = state[-2 * rows : -rows]
        powers = {"beta1_power": 0.9**13, "beta2_power": 0.999**13, "learning_rate": 3e-4}
        found |= {name: np.asarray(value, np.float32) for name, value in powers.items()}
    return {**found, "global_step": np.asarray(12, np.int64)}


def save(folder: Path, arrays: Mapping[str, Array], flags: Mapping[str, Any] | None, alphabet: str | None) -> Path:
    """``arrays`` as ``best_dev-12`` of ``folder``, beside flags and alphabet."""
    folder.mkdir(parents=True)
    write_bundle(folder / "best_dev-12", sorted(arrays.items()))
    write_state(folder / "best_dev_checkpoint", "best_dev-12")
    if flags is not None:
        (folder / "flags.txt").write_text(json.dumps(flags))
    if alphabet is not None:
        (folder / "alphabet.txt").write_text(alphabet, "utf-8")
    return folder / "best_dev-12"


def trained(folder: Path, c: DeepSpeechConfig | None = None, **how: Any) -> Path:
    """A checkpoint of ``c`` with what Coqui puts beside it."""
    c = c or config()
    flags = {**flags_of(c, utf8=False), "epochs": 3}
    return save(folder, tensors(c, **how), flags, "# ours\n" + "".join(f"{label}\n" for label in LABELS))
