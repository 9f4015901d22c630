"""HDF5 files of Keras, and any other HDF5 file as arrays by path, through h5py in a child process.

Keras 1 and 2, and 3 for names ending in ``.h5``: ``model_weights/<layer>/<weight>`` in the order of the attributes
``layer_names`` and ``weight_names``, and ``optimizer_weights`` (keras/src/legacy/saving/legacy_h5_format.py). Keras 3:
a zip of ``config.json``, ``metadata.json`` and ``model.weights.h5``, or the latter alone, with ``…/vars/0`` by layer
(keras/src/saving/saving_lib.py). Configurations are given as data, never evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.checkpoint import Array, Candidate, Checkpoint, Entry, SlotEntry, dtype_of
from warmstart.formats.isolated import Isolated, checked_shape
from warmstart.formats.mapped import head, map_file, view
from warmstart.formats.zipped import member_names

FORMAT = "keras"
PLAIN = "hdf5"
WEIGHTS = "model.weights.h5"
_MAGIC = b"\x89HDF\r\n\x1a\n"
_BLOCKS = (0, 512, 1024, 2048)  # where HDF5 may begin, after a user's own block
_JSON = ("model_config", "training_config", "config.json", "metadata.json")
_MOMENTS = {"m": "m", "v": "v", "momentum": "m", "velocity": "v"}


def recognise(path: Path) -> bool:
    """Whether ``path`` is an HDF5 file, or a zip with Keras's weights."""
    start = head(path, _BLOCKS[-1] + 8)
    if any(start[at : at + 8] == _MAGIC for at in _BLOCKS):
        return True
    return start.startswith(b"PK\x03\x04") and WEIGHTS in member_names(path)


def candidates(directory: Path) -> list[Candidate]:
    """Files ``*.h5``, ``*.hdf5`` and ``*.keras``."""
    paths = sorted(
        path for path in directory.iterdir() if path.suffix in (".h5", ".hdf5", ".keras") and recognise(path)
    )
    return [Candidate(path, path.name) for path in paths]


def open(path: Path) -> Checkpoint:
    """Lists the file's arrays in a child process.

    Raises:
        MissingExtra: h5py is not installed.
        CorruptCheckpoint: the file is damaged.
        FormatError: it reaches outside of itself.
    """
    return KerasCheckpoint(path)


class KerasCheckpoint(Checkpoint):
    """``metadata`` has Keras's versions and configurations, and for Keras 3 what its layers are called (``names``, by
    their place in the file). The optimizer's numbers are in ``optimizer`` by name; its
    arrays that belong to no one parameter are named in ``optimizer["other_arrays"]``, for :meth:`read_other`."""

    def __init__(self, path: Path) -> None:
        self._child = Isolated("warmstart.formats.hdf5_child", path, library="h5py", extra="hdf5")
        listed = self._child.call("listing")
        self._places = {name: place for name, _, _, _, place in listed["arrays"] if place is not None}
        self._map = map_file(path) if self._places else None
        self._size = path.stat().st_size
        arrays = _arrays(path, listed)
        attributes: Mapping[str, Any] = listed["attributes"]
        keras = any(name in attributes for name in ("model_weights",)) or "layer_names" in attributes.get("", {})
        keras = keras or any(name.endswith("/vars/0") for name in arrays) or "config.json" in attributes.get("", {})
        super().__init__(path=path, format=FORMAT if keras else PLAIN, files=(Path(path.name),))
        self.metadata = _metadata(listed)
        if keras:
            self._sort(arrays, attributes)
        else:
            self._paths = {name: name for name in arrays}
        self.entries = {
            name: Entry(name, arrays[place].shape, arrays[place].dtype) for name, place in self._paths.items()
        }
        first = {name: same for name, _, _, same, _ in listed["arrays"]}
        names = {place: name for name, place in self._paths.items()}
        self.ties = {
            name: names[first[place]]
            for name, place in self._paths.items()
            if first[place] != place and first[place] in names
        }

    def _sort(self, arrays: Mapping[str, Entry], attributes: Mapping[str, Any]) -> None:
        """Parameters in Keras's order, the optimizer's state, and what is left."""
        weights = dict(_weights(self.path, arrays, attributes))
        legacy = any("layer_names" in attributes.get(group, {}) for group in ("", "model_weights"))
        beside = ("optimizer_weights/",) if legacy else ("optimizer/", "metrics/")
        state = {name for name in arrays if name.startswith(beside)}
        left = [name for name in arrays if name not in state and name not in set(weights.values())]
        self._paths = {**weights, **{name: name for name in left}}
        self._slots: dict[tuple[str, str], str] = {}
        self.slots, optimizer, running, others = {}, {}, {}, []
        by_weight = _by_weight_name(weights)
        for place in (name for name in arrays if name in state):
            entry, name = arrays[place], place.partition("/")[2]
            slot = _slot(name, by_weight)
            if slot is not None and arrays[weights[slot[0]]].shape == entry.shape and slot not in self._slots:
                self._slots[slot] = place
                self.slots[slot] = SlotEntry(*slot, entry.shape, entry.dtype)
            elif entry.size == 1:
                value = self._read(entry).reshape(-1)[0].item()
                if place.startswith("metrics/"):
                    running[name] = value
                elif self.step is None and _is_step(name) and isinstance(value, int) and value >= 0:
                    self.step = value
                else:
                    optimizer[name] = value
            else:
                others.append(place)
        self.optimizer = {**optimizer, **({"other_arrays": others} if others else {})}
        if running:
            self.metadata = {**self.metadata, "running_metrics": running}
        self._others = {place: arrays[place] for place in others}
        self._arrays = arrays

    def _read(self, entry: Entry) -> Array:
        """A view into the file where the array lies in it as it is, else what the child reads."""
        place = self._places.get(entry.name)
        if place is not None and self._map is not None:
            if not 0 <= place <= len(self._map) - entry.nbytes:
                raise CorruptCheckpoint(
                    "an array lies beyond the end of the file", where=f"{self.path}, array {entry.name!r}",
                    expected=f"{entry.nbytes} bytes at {place}", found=f"{len(self._map)} bytes in all",
                    todo="download or copy it again",
                )  # fmt: skip
            return view(self._map, dtype_of(entry.dtype), entry.shape, place)
        if entry.nbytes > 2**20 + 1100 * self._size:  # HDF5's filters shrink no more than that
            raise CorruptCheckpoint(
                "an array is larger than the file can hold", where=f"{self.path}, array {entry.name!r}",
                expected=f"bytes for {entry.dtype} {entry.shape}", found=f"{self._size} bytes in the file",
                todo="download or copy it again",
            )  # fmt: skip
        return self._child.array("read", entry.shape, entry.dtype, name=entry.name)

    def read(self, name: str) -> Array:
        entry = self.entries[name]
        return self._read(Entry(self._paths[name], entry.shape, entry.dtype))

    def read_slot(self, parameter: str, slot: str) -> Array:
        entry = self.slots[parameter, slot]
        return self._read(Entry(self._slots[parameter, slot], entry.shape, entry.dtype))

    def read_other(self, name: str) -> Array:
        """One of ``optimizer["other_arrays"]``."""
        return self._read(self._others[name])


def _arrays(path: Path, listed: Mapping[str, Any]) -> dict[str, Entry]:
    arrays: dict[str, Entry] = {}
    for name, shape, dtype, _, _ in listed["arrays"]:
        arrays[name] = Entry(name, checked_shape(shape, f"{path}, array {name!r}"), dtype)
    if not arrays:
        raise FormatError(
            "an HDF5 file without arrays", where=path, found=", ".join(listed["attributes"])[:200] or None
        )
    return arrays


def _metadata(listed: Mapping[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for group, values in listed["attributes"].items():
        for key, value in values.items():
            if key in ("layer_names", "weight_names") or re.fullmatch(r"(layer|weight)_names\d+", key):
                continue
            if key == "name" and group.endswith("vars"):
                metadata.setdefault("names", {})[group.removesuffix("vars").rstrip("/")] = value
            elif key in _JSON and isinstance(value, str):
                metadata[key.removesuffix(".json")] = _json(value)
            else:
                metadata.setdefault(f"{group}/{key}" if group and group != "model_weights" else key, value)
    for key in ("texts", "other", "links"):
        left = {name: value for name, value in listed[key].items() if key != "other" or name not in listed["texts"]}
        if left:
            metadata[f"{key}_in_file" if key == "links" else key] = left
    return metadata


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _weights(path: Path, arrays: Mapping[str, Entry], attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name below ``model_weights``, path in the file), as Keras lists them."""
    root = "model_weights/" if any(name.startswith("model_weights/") for name in arrays) else ""
    for layer in _names(attributes.get(root.rstrip("/"), {}), "layer_names"):
        for weight in _names(attributes.get(f"{root}{layer}", {}), "weight_names"):
            place = f"{root}{layer}/{weight}"
            if place not in arrays:
                raise CorruptCheckpoint(
                    "a weight that the file lists is not in it", where=f"{path}, layer {layer!r}",
                    expected=weight, todo="download or copy it again",
                )  # fmt: skip
            yield f"{layer}/{weight}", place
    if root:
        for place in arrays:
            if place.startswith(root):
                yield place.removeprefix(root), place


def _names(attributes: Mapping[str, Any], key: str) -> list[str]:
    """A list of names, which Keras splits over ``<key>0``, ``<key>1`` … when it is long."""
    parts = [attributes[key]] if key in attributes else []
    while f"{key}{len(parts)}" in attributes and key not in attributes:
        parts.append(attributes[f"{key}{len(parts)}"])
    return [name for part in parts if isinstance(part, list) for name in part if isinstance(name, str)]


def _by_weight_name(weights: Mapping[str, str]) -> dict[str, str | None]:
    """How an optimizer may call a weight → the entry's name; None where two weights would be called so."""
    found: dict[str, str | None] = {}
    for name in weights:
        weight = name.partition("/")[2].partition(":")[0]
        for spelling in {weight, weight.replace("/", "_")}:
            found[spelling] = None if spelling in found else name
    return found


def _slot(name: str, by_weight: Mapping[str, str | None]) -> tuple[str, str] | None:
    """(entry, slot) of an optimizer's weight: ``Adam/<weight>/m:0`` of TensorFlow 2.0 to 2.10, ``Adam/m/<weight>:0``
    until 2.15, ``adam/<weight>_momentum`` of Keras 3."""
    parts = name.partition(":")[0].split("/")
    start = next((k for k, part in enumerate(parts) if part.lower() in ("adam", "adamw", "nadam")), None)
    if start is None or len(parts) < start + 2:
        return None
    rest = parts[start + 1 :]
    flat, _, moment = rest[-1].rpartition("_")
    for weight, slot in (("/".join(rest[:-1]), rest[-1]), ("/".join(rest[1:]), rest[0]), (flat, moment)):
        parameter = by_weight.get(weight)
        if slot in _MOMENTS and parameter is not None:
            return parameter, _MOMENTS[slot]
    return None


def _is_step(name: str) -> bool:
    return name.partition(":")[0].rpartition("/")[2] in ("iter", "iteration", "iterations") or name == "vars/0"
