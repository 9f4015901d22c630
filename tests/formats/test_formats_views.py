"""A view has what it was made of under its own names, whichever way it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from warmstart.errors import CorruptCheckpoint
from warmstart.formats.checkpoint import Array, Checkpoint, Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.npz import write_npz
from warmstart.formats.views import View
from warmstart.testing import InMemory


class Doubled(View):
    """Values that are computed."""

    def seen(self, name: str, read: Callable[[str], Array]) -> Array:
        return 2 * super().seen(name, read)


READ: dict[str, Callable[[Checkpoint, str], Array]] = {
    "read": lambda checkpoint, name: checkpoint.read(name),
    "raw": lambda checkpoint, name: checkpoint.raw(name),
    "peek": lambda checkpoint, name: checkpoint.peek(name),
    "read_checked": lambda checkpoint, name: checkpoint.read_checked(name),
}


@pytest.mark.parametrize("how", READ)
def test_every_way_of_reading_gives_what_is_seen(how: str) -> None:
    original = InMemory({"a": np.arange(3.0), "b": np.ones((2, 2))})
    view = Doubled(View(original, {"new/a": "a", "b": "b"}))
    assert READ[how](view, "new/a").tolist() == [0, 2, 4]
    assert {name: entry.name for name, entry in view.entries.items()} == {"new/a": "new/a", "b": "b"}
    with pytest.raises(KeyError):
        READ[how](view, "a")


def test_what_is_not_said_is_the_originals() -> None:
    original = InMemory({"a": np.ones(2), "b": np.ones(2)})
    original.ties, original.step, original.metadata = {"b": "a"}, 7, {"said": 1}
    view = View(original, {"x": "a", "y": "b"}, metadata={"said": 2})
    assert (view.ties, view.metadata, view.path) == ({"y": "x"}, {"said": 2}, original.path)
    assert (view.step, dict(view.slots)) == (None, {}), "state of an optimizer is for who asks for it"
    assert View(original, {"y": "b"}).ties == {}
    with pytest.raises(KeyError):
        view.read_slot("x", "m")


def test_checksums_are_the_originals(tmp_path: Path) -> None:
    write_npz(tmp_path / "m.npz", [("a", np.arange(1000, dtype="f4"))])
    data = bytearray((tmp_path / "m.npz").read_bytes())
    data[2000] ^= 1
    (tmp_path / "m.npz").write_bytes(data)
    opened = open_checkpoint(tmp_path / "m.npz")
    view = View(opened, {"x": "a"}, entries={"x": opened.entries["a"], "made": Entry("made", (), "float32")})
    with pytest.raises(CorruptCheckpoint):
        view.verify("x")
    view.verify("made")
    with pytest.raises(KeyError):
        view.verify("a")
    assert view.peek("x").shape == (1000,)
