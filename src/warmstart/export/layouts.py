"""How the arrays of a conversion lie on disk: one writer for each layout, none of which knows a family."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from heapq import merge
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.errors import FormatError, Problem
from warmstart.export.as_it_is import FORMATS
from warmstart.export.plan import Conversion
from warmstart.export.slots import SlotRow, factored
from warmstart.formats import safetensors, torch_write
from warmstart.formats.checkpoint import Array, Entry
from warmstart.formats.model_bin import TYPES, write_ctranslate2
from warmstart.formats.placed import Fill
from warmstart.formats.writers import NUMPYS_OWN, writer_for
from warmstart.lean import dataclass

LIMIT = 2**32 - 1  # bytes of one array of a model.bin


@dataclass(frozen=True)
class Written:
    """What is written, known before the first array: ``entries`` in their order, ``aliases`` → entry, and how to
    compute optimizer state."""

    entries: tuple[Entry, ...]
    aliases: Mapping[str, str]
    state: Callable[[SlotRow], Array] | None = None


@dataclass(frozen=True)
class Layout:
    """``write(directory, conversion, written, arrays)`` stores ``arrays``, one for each entry in order.

    Attributes:
        placed: whether ``write`` also takes what puts arrays into their places.
        aliases: whether equal arrays are stored once under several names; else each is stored.
        dtypes: what the layout holds.
    """

    write: Callable[[Path, Conversion, Written, Any], None]
    dtypes: tuple[str, ...]
    placed: bool = False
    aliases: bool = False
    limit: int | None = None


def check(conversion: Conversion, written: Written) -> None:
    """Refuse what the layout cannot hold, before anything is read.

    Raises:
        FormatError: arrays of 4 GiB, or dtypes that it lacks; all are named.
    """
    layout = LAYOUTS[conversion.layout]
    problems = [
        Problem(f"{e.name} is of {e.nbytes:,} bytes", expected=f"at most {layout.limit:,} in one array")
        for e in written.entries
        if layout.limit is not None and e.nbytes > layout.limit
    ]
    problems += [
        Problem(f"{e.name} is of dtype {e.dtype}", expected=", ".join(layout.dtypes))
        for e in written.entries
        if e.dtype not in layout.dtypes
    ]
    if problems:
        raise FormatError(f"{conversion.layout} cannot hold these arrays", problems=problems)


def entries_of(conversion: Conversion, aliases: Mapping[str, str]) -> Written:
    """Every entry that is written, scales among them, sorted by name."""
    entries: list[Entry] = []
    for row in conversion.rows:
        if row.name in aliases:
            continue
        entries.append(Entry(row.name, row.shape, row.storage.dtype))
        if row.storage.scale != "none":
            shape = row.shape[:1] if row.storage.scale == "rows" else ()
            entries.append(Entry(f"{row.name}_scale", shape, "float32"))
    return Written(tuple(sorted(entries, key=lambda e: e.name)), aliases)


def _model_bin(directory: Path, conversion: Conversion, written: Written, arrays: Iterable[Array] | Fill) -> None:
    assert conversion.specification is not None
    path, specification = directory / "model.bin", conversion.specification
    write_ctranslate2(path, *specification, written.entries, arrays, written.aliases)


def _model_npz(directory: Path, conversion: Conversion, written: Written, arrays: Iterable[Array]) -> None:
    from warmstart.formats.marian import CONFIG, write_marian

    write_marian(directory / "model.npz", conversion.header[CONFIG], _named(written, arrays))


def _safetensors(directory: Path, conversion: Conversion, written: Written, arrays: Iterable[Array] | Fill) -> None:
    safetensors.write_safetensors(directory / "model.safetensors", written.entries, arrays, dict(conversion.header))


def _as_it_is(directory: Path, conversion: Conversion, written: Written, arrays: Iterable[Array]) -> None:
    path = directory / FORMATS[conversion.layout]
    writer_for(path).write(path, written.entries, arrays)


def _t5x(directory: Path, conversion: Conversion, written: Written, arrays: Iterable[Array]) -> None:
    """``checkpoint_<step>`` in the directory, which is what T5X calls a model's."""
    from warmstart.formats.t5x_write import write_t5x

    step = int(conversion.header["step"])
    slots = (((name, slot), array) for name, slot, array in _states(conversion, written, later=True))
    write_t5x(directory / f"checkpoint_{step}", _named(written, arrays), step=step, slots=slots)


def _tensorflow(directory: Path, conversion: Conversion, written: Written, arrays: Iterable[Array]) -> None:
    """``model.ckpt-<step>`` and the state file that names it; slots as mesh-tensorflow calls them."""
    from warmstart.formats.tensorflow import write_bundle, write_state

    step = int(conversion.header["step"])
    counted = ("global_step", np.asarray(step, np.int64))
    suffix = {"v_row": "vr", "v_col": "vc"}
    states = _states(conversion, written, later=False)
    slots = ((f"{parameter}_slot_{suffix.get(slot, slot)}", array) for parameter, slot, array in states)
    write_bundle(directory / f"model.ckpt-{step}", chain(_named(written, arrays), slots, [counted]))
    write_state(directory / "checkpoint", f"model.ckpt-{step}")


def _onnx(directory: Path, conversion: Conversion, written: Written, arrays: Iterable[Array]) -> None:
    from warmstart.export.onnx import write_onnx

    graph = json.loads(conversion.header["graph"])
    write_onnx(directory, graph, _named(written, arrays), int8=conversion.options.quantization == "int8")


def _tensorflow_saver(directory: Path, conversion: Conversion, written: Written, arrays: Iterable[Array]) -> None:
    """A bundle as the Saver of TensorFlow 1 writes it, everything sorted by name; Adam's slots of ``X`` are ``X/Adam``
    and ``X/Adam_1``. State files name it."""
    from warmstart.formats.tensorflow import write_bundle, write_state

    prefix, suffix = conversion.header["prefix"], {"m": "Adam", "v": "Adam_1"}
    assert written.state is not None
    later = {
        f"{row.parameter}/{suffix.get(row.slot, row.slot)}": partial(written.state, row) for row in conversion.slots
    }
    later |= {name: partial(np.asarray, value) for name, value in conversion.scalars.items()}
    rest = ((name, later[name]()) for name in sorted(later))
    write_bundle(directory / prefix, merge(_named(written, arrays), rest, key=lambda named: named[0].encode()))
    for state in conversion.header["states"].split():
        write_state(directory / state, prefix)


def _tflite(directory: Path, conversion: Conversion, written: Written, arrays: Iterable[Array]) -> None:
    from warmstart.export.tflite import write_tflite

    graph = json.loads(conversion.header["graph"])
    write_tflite(directory, graph, _named(written, arrays), int8=conversion.options.quantization == "int8")


def _states(conversion: Conversion, written: Written, later: bool) -> Iterator[tuple[str, str, Array]]:
    for row, slot in factored(conversion.slots, later).items():
        assert written.state is not None
        yield row.parameter, slot, written.state(row)


def _named(written: Written, arrays: Iterable[Array]) -> Iterator[tuple[str, Array]]:
    for entry, array in zip(written.entries, arrays, strict=True):
        yield entry.name, array


_SAFETENSORS = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip

LAYOUTS: dict[str, Layout] = {
    "model.bin": Layout(_model_bin, TYPES, placed=True, aliases=True, limit=LIMIT),
    "model.npz": Layout(_model_npz, ("float32", "float16", "bfloat16")),
    "model.safetensors": Layout(_safetensors, _SAFETENSORS, placed=True),
    "safetensors": Layout(_as_it_is, tuple(safetensors.DTYPES.values())),
    "npz": Layout(_as_it_is, tuple(NUMPYS_OWN)),
    "torch": Layout(_as_it_is, tuple(torch_write.DTYPES)),
    "onnx": Layout(_onnx, ("float32",)),
    "tflite": Layout(_tflite, ("float32",)),
    "t5x": Layout(_t5x, ("float64", "float32", "float16", "bfloat16")),
    "tensorflow-saver": Layout(_tensorflow_saver, ("float64", "float32", "float16", "bfloat16")),
    "tensorflow": Layout(_tensorflow, ("float64", "float32", "float16", "bfloat16")),
}
