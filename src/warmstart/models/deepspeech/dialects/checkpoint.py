"""A bundle of Coqui's with what lies beside it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.errors import DialectError
from warmstart.formats.checkpoint import Array, Checkpoint
from warmstart.formats.views import View
from warmstart.models.deepspeech.dialects.flags import NAME, read_flags
from warmstart.spec.lstm import CudnnLstm
from warmstart.spec.ops import PermuteBlocks

ALPHABET = "alphabet.txt"
CELL = "cudnn_lstm/rnn/multi_rnn_cell/cell_0/cudnn_compatible_lstm_cell"
OPAQUE = "cudnn_lstm/opaque_kernel"
GATES = PermuteBlocks((0, 2, 1, 3))
"""TensorFlow's gates (input, candidate, forget, output) to ours (input, forget, candidate, output)."""


def folder_of(checkpoint: Checkpoint) -> Path:
    """Where the checkpoint's files are."""
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


class CoquiCheckpoint(View):
    """The same arrays. ``metadata["coqui"]`` has the prefix, and the files beside it: flags, text of the alphabet.

    Raises:
        DialectError: flags.txt cannot be read.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        folder = folder_of(checkpoint)
        beside = [Path(name) for name in (NAME, ALPHABET) if (folder / name).is_file()]
        coqui: dict[str, Any] = {"flags": read_flags(folder)}
        coqui["prefix"] = next((f.name.removesuffix(".index") for f in checkpoint.files if f.suffix == ".index"), "")
        if (folder / ALPHABET).is_file():
            coqui["alphabet"] = (folder / ALPHABET).read_bytes().decode("utf-8", "replace")
        super().__init__(
            checkpoint,
            metadata={**checkpoint.metadata, "coqui": coqui},
            slots=checkpoint.slots,
            step=checkpoint.step,
            optimizer=checkpoint.optimizer,
            files=[*checkpoint.files, *(name for name in beside if name not in checkpoint.files)],
        )


class CudnnCheckpoint(CoquiCheckpoint):
    """A checkpoint of ``--train_cudnn``, which has the LSTM twice: as cuDNN lays it out, and by gates.

    How cuDNN lays it out is its own affair, so it is believed only if it holds the weights that stand beside it by
    gates, bit for bit.
    """

    def __init__(self, checkpoint: Checkpoint, op: CudnnLstm) -> None:
        super().__init__(checkpoint)
        self._op, self._agrees = op, False

    @cached_property
    def lossy(self) -> Mapping[str, str]:
        """What of cuDNN's array one bias cannot hold → how. Reads the biases and their state."""
        places, lost = 4 * self._op.units, dict[str, str]()
        if apart := self._apart(super().read_checked(OPAQUE)):
            what = f"cuDNN's two biases are not halves of one in {apart:,} of {places:,} places: their sum is kept"
            lost["lstm.bias"] = what
        for slot in ("m", "v"):
            if (OPAQUE, slot) in self.slots and (apart := self._apart(super().read_slot(OPAQUE, slot))):
                what = f"of cuDNN's two biases it differs in {apart:,} of {places:,} places: the first's is kept"
                lost[f"lstm.bias: {slot}"] = what
        return lost

    def _apart(self, array: Array) -> int:
        """In how many places the two biases in ``array`` differ."""
        first, second = self._op.biases(array)
        return int(np.count_nonzero(first != second))

    def read_checked(self, name: str) -> Array:
        if name == OPAQUE:
            self._agree()
        return super().read_checked(name)

    def read_slot(self, parameter: str, slot: str) -> Array:
        if parameter == OPAQUE:
            self._agree()
        return super().read_slot(parameter, slot)

    def _agree(self) -> None:
        names = f"{CELL}/kernel", f"{CELL}/bias"
        if self._agrees or any(name not in self.entries for name in names):
            return
        weight, bias = self._op.forward([super().read_checked(OPAQUE)])
        kernel, summed = (super(CudnnCheckpoint, self).read_checked(name) for name in names)
        theirs = (*GATES.forward([kernel.T]), *GATES.forward([summed]))
        wrong = [n for n, a, b in zip(names, (weight, bias), theirs, strict=True) if a.tobytes() != b.tobytes()]
        if wrong:
            raise DialectError(
                f"{OPAQUE} does not hold the weights that stand beside it",
                where=self.path,
                expected="cuDNN's layout: input weights, recurrent weights, two biases of each gate",
                found=f"other values than in {' and '.join(wrong)}",
                todo="--from coqui (`start.dialect: coqui`) reads those, and leaves this array and its state behind",
            )
        self._agrees = True
