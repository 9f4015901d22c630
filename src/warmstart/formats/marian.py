"""Marian's models (npz, or the binary file of marian-conv), with the optimizer, progress and options beside them.

``special:model.yml`` holds the model's options as text in an int8 array, padded with NULs. The optimizer's
arrays are (1, N): all parameters in byte order of their names, each padded with zeros to a multiple of 256 bytes
of the type that was trained in: 64 elements in float32, 128 in float16 (marian-dev, src/tensors/allocator.h and
src/optimizers/optimizers.cpp). A training on several devices saves its shards one after the other: the same arrays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats import marian_bin, npz
from warmstart.formats.checkpoint import Array, Candidate, Checkpoint, SlotEntry
from warmstart.formats.mapped import head
from warmstart.formats.marian_bin import BinFile
from warmstart.formats.npz import NpzFile, write_npz
from warmstart.formats.plain_yaml import parse
from warmstart.formats.zipped import member_names

FORMAT = "marian"
CONFIG = "special:model.yml"
ALIGNMENTS = (64, 128)  # elements, that is 256 bytes of float32 or float16: Marian's allocator
OPUS_DECODER = "decoder.yml"
MAX_YAML = 16 * 2**20
_LAYER = re.compile(r"(encoder|decoder)\d*_l\d+_(self|context|ffn|rnn)_")
_BEST = re.compile(r".+\.(npz|bin)\.best-.+\.(npz|bin)$")
_ITERATION = re.compile(r".+\.iter\d+\.(npz|bin)$")
_AFTER = re.compile(r"(\d{1,15})([KMG]?)([eut]?)(?=,|$)")  # "10e,300Ku,20Gt": epochs, updates, target labels
_THOUSANDS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_SLOTS = {"m": "adam_mt", "v": "adam_vt"}
_FLAT = ("adam_mt", "adam_vt", "master_parameters", "exp_smoothing")


def recognise(path: Path) -> bool:
    """Whether ``path`` is an npz file with Marian's options or with arrays of Marian's names, or a binary file."""
    if not path.is_file():
        return False
    if not npz.recognise(path):
        return marian_bin.recognise(path)
    names = member_names(path)
    return f"{CONFIG}.npy" in names or any(_LAYER.match(name) for name in names)


def candidates(directory: Path) -> list[Candidate]:
    """The models of a training directory: the last one, the best by each metric, and those of single updates; or, where
    OPUS-MT's ``decoder.yml`` lists them, these.

    ``model.npz`` is where Marian saves (the ``last``; ``final`` too if the progress beside it reached one of the
    limits in the options), ``model.npz.best-METRIC.npz`` is ``best``, ``model.iterN.npz`` has no role. The files
    beside models (optimizer, progress, weights before smoothing) are none.
    """
    listed = [directory / name for name in _models(_opus_decoder(directory))]
    if listed and all(path.is_file() for path in listed):
        return [Candidate(path, path.name) for path in listed]
    files = [path for path in sorted(directory.glob("*")) if path.suffix in (".npz", ".bin") and _is_model(path)]
    return [Candidate(path, path.name, _roles(path, files)) for path in files]


def _is_model(path: Path) -> bool:
    if not path.is_file() or path.name.endswith(npz.SIDECARS):
        return False
    return path.name == "model.npz" or (npz.recognise(path) and bool(_BEST.match(path.name))) or recognise(path)


def _roles(path: Path, files: list[Path]) -> tuple[str, ...]:
    if _BEST.match(path.name):
        return ("best",)
    if _ITERATION.match(path.name):
        return ()
    stem = path.name.removesuffix(path.suffix)
    family = any(other.name.startswith((f"{path.name}.best-", f"{stem}.iter")) for other in files)
    sidecars = [path.with_name(path.name + suffix) for suffix in (".progress.yml", ".optimizer.npz")]
    if not family and path.name not in ("model.npz", "model.bin") and not any(file.is_file() for file in sidecars):
        return ()
    return ("last", "final") if _finished(path) else ("last",)


def _finished(path: Path) -> bool:
    """Whether the progress beside ``path`` reached a limit of the options beside it (marian-dev, scheduler.h)."""
    progress, options = (_yaml_beside(path, suffix) for suffix in (".progress.yml", ".yml"))
    epochs = progress.get("epochs")
    counts = {
        "e": epochs - 1 if isinstance(epochs, int) else None,
        "u": progress.get("batches"),
        "t": progress.get("labels-total"),
        "stalled": progress.get("stalled"),
    }
    limits = [
        ("e", options.get("after-epochs")),
        ("u", options.get("after-batches")),
        ("stalled", options.get("early-stopping")),
        *((unit or "u", int(n) * _THOUSANDS[k]) for n, k, unit in _AFTER.findall(str(options.get("after", "")))),
    ]
    return any(
        isinstance(most, int) and isinstance(count, int) and 0 < most <= count
        for count, most in ((counts[unit], most) for unit, most in limits)
    )


def _yaml_beside(path: Path, suffix: str) -> dict[str, Any]:
    file = path.with_name(path.name + suffix)
    return _yaml(head(file, MAX_YAML + 1), str(file)) if file.is_file() else {}


def _opus_decoder(directory: Path) -> dict[str, Any]:
    """What OPUS-MT's ``decoder.yml`` says; empty where there is none."""
    file = directory / OPUS_DECODER
    return _yaml(head(file, MAX_YAML + 1), str(file)) if file.is_file() else {}


def _models(decoder: dict[str, Any]) -> list[str]:
    """Names of the models that a decoder's options list, if they lie in one directory; several are an ensemble."""
    names = decoder.get("models") or []
    return [Path(str(name)).name for name in names] if isinstance(names, list) else []


def open(path: Path) -> MarianCheckpoint:
    """Reads the headers of ``path`` and of ``<path>.optimizer.npz``, and the small YAML files beside it.

    Raises:
        CorruptCheckpoint: one of them is damaged, or the optimizer's state is not of this model.
        FormatError: a binary file that is encrypted or of a big-endian machine.
    """
    return MarianCheckpoint(path)


class MarianCheckpoint(Checkpoint):
    """A Marian model.

    ``metadata`` has ``config`` (the dict of ``special:model.yml``; absent if the file lacks it) and, where the
    files exist, ``progress`` (without the generators' states), ``decoder`` and ``options``; ``decoder_of`` are the
    models that a ``decoder.yml`` names which does not name this one. ``step`` counts updates. ``optimizer`` has
    ``adam_denoms``: the running denominators of Adam's bias correction.
    """

    def __init__(self, path: Path) -> None:
        self._file = NpzFile(path) if npz.recognise(path) else BinFile(path)
        entries = {name: entry for name, entry in self._file.entries.items() if name != CONFIG}
        super().__init__(path=path, format=FORMAT, entries=entries, files=[Path(path.name)])
        metadata: dict[str, Any] = {}
        if CONFIG in self._file.entries:
            metadata["config"] = _embedded(self._file)
        for key, suffix in (("progress", ".progress.yml"), ("decoder", ".decoder.yml"), ("options", ".yml")):
            sidecar = self._sidecar(suffix)
            if sidecar is not None:
                metadata[key] = _yaml(head(sidecar, MAX_YAML + 1), str(sidecar))
        shared = {} if "decoder" in metadata else _opus_decoder(path.parent)
        if path.name in _models(shared):
            metadata["decoder"] = shared
            self.files = [*self.files, Path(OPUS_DECODER)]
        elif shared:
            metadata["decoder_of"] = _models(shared)
        if "progress" in metadata:
            metadata["progress"] = {k: v for k, v in metadata["progress"].items() if not str(k).startswith("seed-")}
            self.step = _step(metadata["progress"], path)
        self.metadata = metadata
        self._offsets: dict[str, int] = {}
        self._optimizer: NpzFile | None = None
        optimizer = self._sidecar(".optimizer.npz")
        if optimizer is not None:
            self._open_optimizer(optimizer)

    def _sidecar(self, suffix: str) -> Path | None:
        path = self.path.with_name(self.path.name + suffix)
        if not path.is_file():
            return None
        self.files = [*self.files, Path(path.name)]
        return path

    def _open_optimizer(self, path: Path) -> None:
        self._optimizer = file = NpzFile(path)
        sizes = [file.entries[name].size for name in _FLAT if name in file.entries]
        layouts = [self._layout(alignment) for alignment in ALIGNMENTS]
        self._offsets, total = next((layout for layout in layouts if layout[1] in sizes), layouts[0])
        for name in _FLAT:
            if name in file.entries and file.entries[name].shape != (1, total):
                raise _foreign_state(
                    path, name, f"(1, {total}), all parameters of {self.path.name}", file.entries[name].shape
                )
        missing = [array for array in _SLOTS.values() if array not in file.entries]
        if len(missing) == 1:
            raise _foreign_state(path, missing[0], "both of Adam's moments", "only the other")
        if not missing:
            self.slots = {
                (name, slot): SlotEntry(name, slot, entry.shape, file.entries[array].dtype)
                for name, entry in self.entries.items()
                for slot, array in _SLOTS.items()
            }
        optimizer: dict[str, Any] = {}
        if "adam_denoms" in file.entries:
            if file.entries["adam_denoms"].size != 2:
                raise _foreign_state(path, "adam_denoms", "2 numbers", file.entries["adam_denoms"].shape)
            optimizer["adam_denoms"] = [float(value) for value in file.read("adam_denoms").reshape(-1)]
        others = sorted(set(file.entries) - {"adam_mt", "adam_vt", "adam_denoms"})
        if others:
            optimizer["other_arrays"] = others
        self.optimizer = optimizer

    def _layout(self, alignment: int) -> tuple[dict[str, int], int]:
        """Where each parameter begins in the flat arrays, and their length."""
        offsets, total = {}, 0
        for name in sorted(self.entries, key=lambda name: name.encode()):
            offsets[name] = total
            total += -(-self.entries[name].size // alignment) * alignment
        return offsets, total

    @property
    def mapped(self) -> bool:
        return self._file.mapped

    def read(self, name: str) -> Array:
        return self._file.read(self.entries[name].name)

    def raw(self, name: str) -> Array:
        return self._file.read(name, copy=False) if isinstance(self._file, NpzFile) else self.read(name)

    def peek(self, name: str) -> Array:
        return self._file.peek(name) if isinstance(self._file, NpzFile) else self.read(name)

    def quantized(self, name: str) -> tuple[Array, float]:
        """The integers of an ``intgemm8`` or ``intgemm16`` array, and what its weights were multiplied by.

        Raises:
            KeyError: no such array.
            FormatError: it is not of these types.
        """
        if not isinstance(self._file, BinFile):
            raise KeyError(name)
        return self._file.quantized(self.entries[name].name)

    def read_slot(self, parameter: str, slot: str) -> Array:
        if (parameter, slot) not in self.slots:
            raise KeyError((parameter, slot))
        return self.read_flat(_SLOTS[slot], parameter)

    def read_flat(self, array: str, parameter: str) -> Array:
        """The part of one of the optimizer's (1, N) arrays that belongs to ``parameter``, in its shape.

        ``array`` is ``adam_mt``, ``adam_vt``, or where ``optimizer["other_arrays"]`` names them
        ``master_parameters`` (float32 weights) and ``exp_smoothing`` (their running mean).

        Raises:
            KeyError: there is no such array or parameter.
        """
        if self._optimizer is None or array not in _FLAT:
            raise KeyError(array)
        entry, start = self.entries[parameter], self._offsets[parameter]
        return self._optimizer.read(array)[0, start : start + entry.size].reshape(entry.shape)


def _foreign_state(path: Path, array: str, expected: object, found: object) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        "the optimizer's state is not that of the model beside it",
        where=f"{path}, array {array!r}",
        expected=expected,
        found=found,
        todo="copy the files of one training together, or move this one away to start with a fresh optimizer",
    )


def _embedded(file: NpzFile | BinFile) -> dict[str, Any]:
    where = f"{file.path}, array {CONFIG!r}"
    entry = file.entries[CONFIG]
    if entry.dtype not in ("int8", "uint8") or entry.nbytes > MAX_YAML:
        raise CorruptCheckpoint(
            "not Marian's options", where=where, expected=f"text of at most {MAX_YAML} bytes",
            found=f"{entry.dtype} {entry.shape}",
        )  # fmt: skip
    return _yaml(file.read(CONFIG).tobytes(), where)


def _yaml(data: bytes, where: str) -> dict[str, Any]:
    text = data.replace(b"\0", b"") if len(data) <= MAX_YAML else b""
    if text.isascii() and (plain := parse(text.decode("ascii"))) is not None:
        return plain
    import yaml

    found = "nothing"
    try:
        if len(data) > MAX_YAML:
            raise ValueError(f"more than {MAX_YAML} bytes")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        value = yaml.load(text.decode("utf-8"), Loader=loader)
        if isinstance(value, dict):
            return value
        found = type(value).__name__
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        found = str(error)
    raise CorruptCheckpoint("unreadable YAML", where=where, expected="keys and values", found=found)


def _step(progress: dict[str, Any], path: Path) -> int:
    step = progress.get("batches")
    if type(step) is not int or step < 0:
        raise CorruptCheckpoint(
            "unreadable progress", where=f"{path}.progress.yml, key 'batches'", expected="a count of updates",
            found=repr(step),
        )  # fmt: skip
    return step


def write_marian(path: Path, config_yaml: str, arrays: Iterable[tuple[str, Array]]) -> None:
    """Writes a model that Marian reads: float32 arrays in the order given, then ``special:model.yml``.

    Raises:
        FormatError: a name is reserved or occurs twice, or an array is not of floating point.
        StorageError: the file cannot be written; what was at ``path`` is untouched.
    """

    import numpy as np

    def members() -> Iterable[tuple[str, Array]]:
        for name, array in arrays:
            if name.startswith("special:"):
                raise FormatError("this name is reserved", where=f"{path}, array {name!r}")
            if not _is_float(array):
                raise FormatError(
                    "Marian's arrays are float32", where=f"{path}, array {name!r}",
                    expected="floating point", found=array.dtype.name,
                )  # fmt: skip
            yield name, np.asarray(array, "<f4")
        yield CONFIG, np.frombuffer(config_yaml.encode("utf-8") + b"\0", np.int8)

    write_npz(path, members())


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"
