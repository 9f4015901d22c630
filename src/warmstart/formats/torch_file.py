"""torch's own files, read without torch and without running what is in them.

Zip archives (``.pt``, ``.pth``, ``.bin``, ``.ckpt``) and the row of pickles of before 1.6: see ``torch_containers``.
Names and metadata are made in ``torch_names``, optimizer state in ``torch_optimizer``, shards in ``torch_shards``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from warmstart.errors import FormatError
from warmstart.formats import torch_shards, torch_write
from warmstart.formats.checkpoint import Array, Candidate, Checkpoint, Entry
from warmstart.formats.mapped import head
from warmstart.formats.pickled import Described, PickledArray
from warmstart.formats.shards import ShardedCheckpoint, named
from warmstart.formats.torch_containers import MAGIC, Container, LegacyContainer, ZipContainer
from warmstart.formats.torch_names import Leaf, Names
from warmstart.formats.torch_optimizer import Slots, find, slots_of
from warmstart.formats.torch_tensors import Tensor, array_of, readable
from warmstart.formats.zipped import first_member, member_names

FORMAT = torch_write.FORMAT
STEPS = ("global_step", "step", "num_updates", "global_steps", "training_step")
ROLES = ("best", "last", "final")
# what the Trainer of transformers, accelerate and DeepSpeed put beside a model
BESIDE = re.compile(
    r"(training_args\.bin|(optimizer|scheduler|scaler|sampler)(_\d+)?\.(pt|bin)|rng_state(_\d+)?\.pth"
    r"|random_states_\d+\.pkl|.*_optim_states\.pt)"
)
_TAR = {"sys_info", "pickle", "storages", "tensors"}
_MAGIC_BYTES = b"\x8a\x0a" + MAGIC.to_bytes(10, "little")
_MAGIC_TEXT = str(MAGIC).encode() + b"L"


def recognise(path: Path) -> bool:
    """Whether ``path`` is a zip archive with torch's pickle, begins with torch's magic number, or is an index of
    such files."""
    if path.is_dir():
        return {entry.name for entry in path.iterdir()} == _TAR
    if not path.is_file():
        return False
    start = head(path, 4096)
    if start.startswith(b"PK\x03\x04"):
        return _zip_of_torch(path, start)
    return _MAGIC_BYTES in start[:32] or _MAGIC_TEXT in start[:32] or torch_shards.recognise(path, start, recognise)


def _zip_of_torch(path: Path, start: bytes) -> bool:
    if first_member(start).endswith(b"/data.pkl"):  # as torch writes it; others may have sorted the members
        return True
    return any(name.count("/") == 1 and name.endswith("/data.pkl") for name in member_names(path))


def candidates(directory: Path) -> list[Candidate]:
    """The torch files of ``directory``: an index stands for its shards, and what the Trainer of transformers puts
    beside a model is none. A DeepSpeed directory offers the model of its latest step."""
    files = [path for path in sorted(directory.iterdir()) if path.is_file() and not BESIDE.fullmatch(path.name)]
    found = [path for path in files if recognise(path)]
    parts = {part for path in found if path.suffix == ".json" for part in named(path)}
    own = [Candidate(path, path.name, _roles(path)) for path in found if path.name not in parts]
    return own or torch_shards.deepspeed(directory)


def _roles(path: Path) -> tuple[str, ...]:
    words = set(re.split(r"[^a-z]+", path.name.lower()))
    return tuple(role for role in ROLES if role in words)


def open(path: Path) -> Checkpoint:
    """Reads the pickle, without running it, and checks every tensor against the file.

    Raises:
        CorruptCheckpoint: the file is damaged or truncated, or contradicts itself.
        FormatError: it has no arrays, two of one name, or is of a kind that is not read.
    """
    if path.is_dir():
        raise _too_old(path)
    start = head(path, 64)
    if start.startswith(b"PK\x03\x04"):
        return TorchCheckpoint(path, ZipContainer(path))
    if start[:1].isspace() or start[:1] == b"{":
        return ShardedCheckpoint(path, FORMAT, open, counted=False)
    return TorchCheckpoint(path, LegacyContainer(path))


def _too_old(path: Path) -> FormatError:
    return FormatError(
        "a torch file of before version 0.1.10, which is a tar archive",
        where=path,
        expected="a torch file of version 0.1.10 or newer",
        todo="load it with torch.load of a torch up to 2.5, and save it again",
    )


class TorchCheckpoint(Checkpoint):
    """One torch file. ``metadata`` nests as the file does; ``ties`` are tensors over the same bytes of a storage.

    ``optimizer`` has an optimizer's ``param_groups``, ``step`` and what else it says, where its state could be told
    apart by parameter; if not, its arrays are entries under their dotted names.
    """

    def __init__(self, path: Path, container: Container) -> None:
        self._container = container
        root, size = container.root, container.size
        optimizers = list(find(root))
        names = Names(root, str(path), size, {id(value) for _, value, _ in optimizers})
        known: dict[str, Slots] = {}
        for place, value, optimizer in optimizers:
            slots = slots_of(optimizer, names, f"{path}, {place}", size, lambda tensor: self._array(tensor).item())
            if slots is not None:
                known[place] = slots
                if isinstance(value, Described):
                    slots.facts["class"] = value.name
        if _clash(known):
            known = {}
        if len(known) < len(optimizers):  # what could not be told apart is listed like everything else
            names = Names(root, str(path), size, {id(value) for place, value, _ in optimizers if place in known})
        self._leaves = names.arrays
        if not self._leaves and not isinstance(root, dict | list | tuple):
            raise _no_arrays(path, root)
        self._slots = {key: tensor for slots in known.values() for key, tensor in slots.tensors.items()}
        super().__init__(
            path=path,
            format=FORMAT,
            entries={name: _entry(name, leaf) for name, leaf in self._leaves.items()},
            metadata={**names.metadata, **container.facts},
            slots={key: entry for slots in known.values() for key, entry in slots.entries.items()},
            step=_step(root, known),
            optimizer=_facts(known),
            files=(Path(path.name),),
            ties=_ties(self._leaves),
        )

    def _array(self, tensor: Tensor) -> Array:
        assert tensor.storage is not None
        buffer, start = self._container.place(tensor.storage)
        return array_of(tensor, buffer, start, self._container.big_endian)

    @property
    def mapped(self) -> bool:
        return self._container.mapped

    def read(self, name: str) -> Array:
        leaf = self._leaves[name]
        if isinstance(leaf, PickledArray):
            return leaf.read()
        if leaf.storage is None or not readable(leaf.dtype):
            raise FormatError(
                "this array cannot be read",
                where=f"{self.path}, array {name!r}",
                expected="numbers that numpy has",
                found=f"{leaf.dtype}, of which the file has no values" if leaf.storage is None else leaf.dtype,
                todo="leave it out, or convert it with the library that wrote it",
            )
        return self._array(leaf)

    def verify(self, name: str) -> None:
        leaf = self._leaves[name]
        if isinstance(leaf, Tensor) and leaf.storage is not None:
            self._container.verify(leaf.storage)

    def read_checked(self, name: str) -> Array:
        self.verify(name)
        return self.read(name)

    def read_slot(self, parameter: str, slot: str) -> Array:
        array = self._array(self._slots[parameter, slot]).reshape(self.slots[parameter, slot].shape)
        array.flags.writeable = False
        return array


def _entry(name: str, leaf: Leaf) -> Entry:
    if isinstance(leaf, PickledArray):
        assert leaf.dtype is not None
        return Entry(name, leaf.shape, leaf.dtype.newbyteorder("=").name)
    if leaf.storage is None:
        return Entry(name, leaf.shape, leaf.dtype, stored=0)
    if not readable(leaf.dtype):
        return Entry(name, leaf.shape, leaf.dtype, stored=leaf.nbytes)
    return Entry(name, leaf.shape, leaf.dtype)


def _ties(leaves: dict[str, Leaf]) -> dict[str, str]:
    first: dict[object, str] = {}
    ties = {}
    for name, leaf in leaves.items():
        if isinstance(leaf, Tensor) and leaf.storage is not None and leaf.nbytes:
            other = first.setdefault(leaf.place, name)
            if other != name:
                ties[name] = other
    return ties


def _clash(known: dict[str, Slots]) -> bool:
    """Whether two optimizers hold the same state of the same parameter."""
    keys = [key for slots in known.values() for key in slots.entries]
    return len(set(keys)) != len(keys)


def _facts(known: dict[str, Slots]) -> dict[str, Any]:
    if len(known) == 1:
        return next(iter(known.values())).facts
    return {place: slots.facts for place, slots in known.items()}


def _step(root: Any, known: dict[str, Slots]) -> int | None:
    if isinstance(root, dict):
        for key in STEPS:
            step = root.get(key)
            if type(step) is int and 0 <= step < 2**63:
                return step
    steps = {slots.step for slots in known.values()}
    return steps.pop() if len(steps) == 1 else None


def _no_arrays(path: Path, root: Any) -> FormatError:
    found = f"an object of class {root.name}" if isinstance(root, Described) else f"a {type(root).__name__}"
    return FormatError(
        "a torch file without arrays",
        where=path,
        expected="tensors, in dicts, lists or a module",
        found=found,
        todo="give the file that holds the model's weights",
    )
