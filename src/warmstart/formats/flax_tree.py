"""What the leaves of a Flax tree are: parameters, optimizer slots, step and the rest.

T5X keeps ``target/<parameter>``, ``state/step`` and ``state/param_states/<parameter>/{m,v,v_row,v_col}`` (under
``optimizer``, which is left out of names); optax keeps ``mu`` and ``nu``, each a tree like the parameters'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Protocol

from warmstart.errors import FormatError
from warmstart.formats.checkpoint import PLACEHOLDERS, Array, Checkpoint, Entry, SlotEntry
from warmstart.lean import dataclass

Key = tuple[str, ...]
_SLOTS = {"m": "m", "v": "v", "v_row": "v_row", "v_col": "v_col", "grad_ema": "m", "grad_sq_ema": "v"}
_MOMENTS = {"mu": "m", "nu": "v"}
_WRAPPERS = ("optimizer", "_optimizer")
_ROOTS: tuple[Key, ...] = (("target",), ("params",), (), ("model",), ("model", "params"), ("params", "params"))


class TreeCheckpoint(Checkpoint):
    """A tree of arrays, wherever they lie. Names are the tree's keys joined by ``/``.

    ``optimizer`` has what belongs to the optimizer and to no parameter: numbers by name, ``unused_slots`` (how many
    of T5X's slots are placeholders) and ``other_arrays`` (names, for :meth:`read_other`). ``read`` gives the array of
    a key, ``number`` what the only element of one is, where there is a shorter way to it.
    """

    def __init__(
        self,
        path: Path,
        format: str,
        leaves: Mapping[Key, Described],
        values: Mapping[Key, Any],
        read: Callable[[Key], Array],
        *,
        number: Callable[[Key], Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        files: Sequence[Path] = (),
    ) -> None:
        self._read = read
        found = sort(leaves, values, number or (lambda key: read(key).reshape(-1)[0].item()), path)
        self._keys = found.keys
        super().__init__(
            path=path,
            format=format,
            entries=found.entries,
            metadata={**(metadata or {}), **found.metadata},
            slots=found.slots,
            step=found.step,
            optimizer=found.optimizer,
            files=files,
        )

    def read(self, name: str) -> Array:
        return self._read(self._keys[self.entries[name].name])

    def read_slot(self, parameter: str, slot: str) -> Array:
        if (parameter, slot) not in self.slots:
            raise KeyError((parameter, slot))
        return self._read(self._keys[parameter, slot])

    def read_other(self, name: str) -> Array:
        """One of ``optimizer["other_arrays"]``."""
        if name not in self.optimizer.get("other_arrays", ()):
            raise KeyError(name)
        return self._read(self._keys[name])


class Described(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...


@dataclass
class Sorted:
    """``keys`` leads from an entry's name, or from (parameter, slot), to its key in the tree."""

    entries: dict[str, Entry] = field(default_factory=dict)
    slots: dict[tuple[str, str], SlotEntry] = field(default_factory=dict)
    step: int | None = None
    optimizer: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    keys: dict[str | tuple[str, str], Key] = field(default_factory=dict)


def flatten(tree: Mapping[str, Any], is_leaf: Callable[[Any], bool], above: Key = ()) -> Iterator[tuple[Key, Any]]:
    """(key, leaf or value) of everything in ``tree``; empty maps are left out."""
    for name, value in tree.items():
        if isinstance(value, dict) and not is_leaf(value):
            yield from flatten(value, is_leaf, (*above, name))
        elif isinstance(value, list) and any(isinstance(item, dict) or is_leaf(item) for item in value):
            yield from flatten({str(k): item for k, item in enumerate(value)}, is_leaf, (*above, name))
        else:
            yield (*above, name), value


def unwrap(tree: Mapping[str, Any]) -> dict[str, Any]:
    """``tree`` without the ``optimizer`` around T5X's ``target`` and ``state``."""
    for wrapper in _WRAPPERS:
        inner = tree.get(wrapper)
        if isinstance(inner, dict) and "target" in inner and not set(inner) & (set(tree) - {wrapper}):
            return {**inner, **{name: value for name, value in tree.items() if name != wrapper}}
    return dict(tree)


def sort(
    leaves: Mapping[Key, Described], values: Mapping[Key, Any], number: Callable[[Key], Any], where: object
) -> Sorted:
    """Sorts arrays (``leaves``) and plain ``values``; ``number`` gives that of an array of one element.

    Raises:
        FormatError: two leaves have one name.
    """
    result = Sorted()
    bare = all(_of_optimizer(key) for key in leaves)  # then the state is all there is to show
    slots = {key: _slot(key, leaves) for key in leaves if _of_optimizer(key) and not bare}
    for key, leaf in leaves.items():
        if key in (("step",), ("state", "step")) and _is_count(leaf):
            result.step = int(number(key))
        elif key not in slots:
            _put(result.entries, "/".join(key), Entry("/".join(key), leaf.shape, leaf.dtype), where)
            result.keys["/".join(key)] = key
        elif (slot := slots[key]) is not None:
            _put(result.slots, (slot.parameter, slot.slot), slot, where)
            result.keys[slot.parameter, slot.slot] = key
        elif key[-1] in _SLOTS and leaf.shape == (1,):
            unused = result.optimizer.setdefault(PLACEHOLDERS, {})
            unused[key[-1]] = unused.get(key[-1], 0) + 1
        elif math.prod(leaf.shape) == 1:
            result.optimizer["/".join(key)] = number(key)
        else:
            result.optimizer.setdefault("other_arrays", []).append("/".join(key))
            result.keys["/".join(key)] = key
    for key, value in values.items():
        if key in (("step",), ("state", "step")) and type(value) is int and result.step is None:
            result.step = value
        else:
            target = result.optimizer if _of_optimizer(key) else result.metadata
            target["/".join(key)] = value
    return result


def _put(table: dict[Any, Any], key: object, value: object, where: object) -> None:
    if key in table:
        raise FormatError("a name occurs twice", where=f"{where}, array {key!r}")
    table[key] = value


def _is_count(leaf: Described) -> bool:
    return leaf.shape in ((), (1,)) and "int" in leaf.dtype


def _of_optimizer(key: Key) -> bool:
    if key[0] in ("opt_state", "optimizer_state"):
        return True
    return key[0] == "state" and len(key) > 1 and key[1] in ("step", "param_states")


def _slot(key: Key, leaves: Mapping[Key, Described]) -> SlotEntry | None:
    """What ``key`` is the state of, if its place and shape say so."""
    leaf = leaves[key]
    if key[:2] == ("state", "param_states") and key[-1] in _SLOTS:
        parameter = ("target", *key[2:-1])
        if parameter in leaves:
            return _slot_of(parameter, _SLOTS[key[-1]], leaves[parameter], leaf)
    for place, name in enumerate(key):
        if name in _MOMENTS and place:
            for root in _ROOTS:
                parameter = (*root, *key[place + 1 :])
                if parameter in leaves and parameter != key and leaves[parameter].shape == leaf.shape:
                    return SlotEntry("/".join(parameter), _MOMENTS[name], leaf.shape, leaf.dtype)
    return None


def _slot_of(parameter: Key, slot: str, of: Described, leaf: Described) -> SlotEntry | None:
    """T5X fills slots that it does not use with zeros of shape (1,).

    The factors are means over one axis: ``v_row`` over the largest, ``v_col`` over the second largest; of equal
    ones numpy's argsort takes the last as the largest (adafactor.py, ``_factored_dims``). For stacked layers the
    shapes alone say which.
    """
    name, shape = "/".join(parameter), of.shape
    if slot in ("m", "v"):
        return SlotEntry(name, slot, leaf.shape, leaf.dtype) if leaf.shape == shape else None
    if leaf.shape == (1,):
        return None
    axes = [axis for axis in range(len(shape)) if shape[:axis] + shape[axis + 1 :] == leaf.shape]
    if not axes:
        return None
    return SlotEntry(name, slot, leaf.shape, leaf.dtype, axes[-1] if slot == "v_row" else axes[0])
