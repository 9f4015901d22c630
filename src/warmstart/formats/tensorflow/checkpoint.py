"""A bundle as a checkpoint: parameters, the optimizer's slots and scalars, the step, texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warmstart.formats.checkpoint import Array, Checkpoint, Entry
from warmstart.formats.tensorflow.bundle import Bundle
from warmstart.formats.tensorflow.index import OPAQUE, Tensor
from warmstart.formats.tensorflow.names import GRAPH, VALUE, full_names, roles
from warmstart.formats.tensorflow.protobuf import Malformed

FORMAT = "tensorflow"
_COUNTER = "save_counter" + VALUE
_SHOWN = 64 * 2**10  # bytes of strings that are shown; what goes beyond is described
_MAX_GRAPH = 8 * 2**20


class BundleCheckpoint(Checkpoint):
    """A TensorFlow checkpoint of version 2.

    Names are those that the file has. ``metadata`` has, where the file gives them, ``strings`` (name → text, or nested
    lists of texts; beyond 64 KiB their sizes), ``full_names`` (name → the variable's own, of TensorFlow 2),
    ``save_counter``, ``dtypes`` (of quantized arrays, which read as integers) and ``missing_files``: data files that
    are not there, whose arrays are listed but cannot be read. ``optimizer`` has scalars such as ``beta1_power``.
    ``slot_names`` has the file's own name of each slot.
    Partitioned variables are assembled on reading; all other arrays are views into a memory map.
    """

    def __init__(self, path: Path, prefix: Path) -> None:
        self._bundle = bundle = Bundle(prefix)
        folder = path if path.is_dir() else path.parent
        files = [file.relative_to(folder) for file in bundle.files]
        if path.is_file() and Path(path.name) not in files:
            files.append(Path(path.name))
        super().__init__(path=path, format=FORMAT, files=files)
        self.metadata = metadata = dict[str, Any]()
        if bundle.missing:
            metadata["missing_files"] = [file.name for file in bundle.missing]
        variables = self._variables()
        if variables:
            metadata["full_names"] = variables
        readable = {name for name in bundle.tensors if bundle.present(name)}
        found = roles(bundle.tensors, variables, readable)
        steps = {self._scalar(name) for name in found.step}
        self.step = steps.pop() if len(steps) == 1 else None
        self.optimizer = {key: self._scalar(name) for key, name in found.scalars.items()}
        self.slots = {key: entry for key, (entry, _) in found.slots.items()}
        self.slot_names = {key: name for key, (_, name) in found.slots.items()}
        known = {*self.slot_names.values(), *found.step, *found.scalars.values()}
        if _COUNTER in readable and _is_scalar(bundle.tensors[_COUNTER]):
            metadata["save_counter"] = self._scalar(_COUNTER)
            known.add(_COUNTER)
        rest = [tensor for name, tensor in bundle.tensors.items() if name not in known]
        self.entries = {tensor.name: _entry(tensor) for tensor in rest if tensor.dtype != "string"}
        strings: dict[str, Any] = {}
        shown = 0
        for tensor in rest:
            if tensor.dtype == "string" and not (variables and tensor.name == GRAPH):
                shown += tensor.piece.size
                strings[tensor.name] = self._text(tensor, describe=shown > _SHOWN)
        self._checked: set[str] = set()
        if strings:
            metadata["strings"] = strings
        quantized = {tensor.name: tensor.dtype for tensor in bundle.tensors.values() if tensor.dtype != tensor.numbers}
        if quantized:
            metadata["dtypes"] = quantized

    def _scalar(self, name: str) -> Any:
        return self._bundle.array(name).item()

    def _variables(self) -> dict[str, str]:
        """What the object graph calls the tensors; nothing if there is none, or it is not one."""
        graph = self._bundle.tensors.get(GRAPH)
        if graph is None or graph.dtype != "string" or graph.shape or graph.piece.size > _MAX_GRAPH:
            return {}
        if not self._bundle.present(GRAPH):
            return {}
        try:
            return full_names(self._bundle.strings(GRAPH).item())
        except Malformed:
            return {}

    def _text(self, tensor: Tensor, describe: bool) -> Any:
        """A tensor of strings for people to read, or how large it is."""
        if describe or not self._bundle.present(tensor.name):
            return {"shape": list(tensor.shape), "nbytes": tensor.piece.size}
        return _decoded(self._bundle.strings(tensor.name).tolist())

    def read(self, name: str) -> Array:
        return self._bundle.array(self.entries[name].name)

    def read_checked(self, name: str) -> Array:
        if name not in self._checked:
            self.verify(name)
            self._checked.add(name)
        return self.read(name)

    def read_slot(self, parameter: str, slot: str) -> Array:
        return self._bundle.array(self.slot_names[parameter, slot])

    def verify(self, name: str) -> None:
        """Compares the array's CRC-32C with that of the index. ``name`` may be that of any tensor of the file.

        Raises:
            KeyError: no such tensor.
            SourceError: the data file that holds it is missing.
            CorruptCheckpoint: they differ.
        """
        self._bundle.verify(name)

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Everything in the file under its own name, in the order of the index, slots, scalars and strings too: what
        :func:`write_bundle` takes to make the same checkpoint again.

        Raises:
            FormatError: one can only be described.
        """
        for name, tensor in self._bundle.tensors.items():
            yield name, self._bundle.strings(name) if tensor.dtype == "string" else self._bundle.array(name)


def _is_scalar(tensor: Tensor) -> bool:
    return not tensor.shape and tensor.dtype not in OPAQUE


def _entry(tensor: Tensor) -> Entry:
    return Entry(tensor.name, tensor.shape, tensor.numbers, tensor.piece.size if tensor.dtype in OPAQUE else None)


def _decoded(texts: Any) -> Any:
    return texts.decode("utf-8", "backslashreplace") if isinstance(texts, bytes) else [_decoded(text) for text in texts]
