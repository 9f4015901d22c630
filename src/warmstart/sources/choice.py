"""Of a remote directory with several checkpoints, the files of the one that ``URL@NAME`` asks for.

Names alone decide here, before anything large is fetched; who opens it decides by content. So only what surely belongs
to another checkpoint is left out, and nothing where the choice says nothing to these names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from warmstart.lean import dataclass

AUTO = "auto"  # the best, or the last where none is the best
ROLES = ("best", "last", "final")
STEP = re.compile(r"(?:[\w.-]*_)?(\d{1,18})")  # the directory of one step: T5X's checkpoint_1000, Orbax's 1000
_PARTS = re.compile(r"(.+)\.(?:index|meta|data-\d{5,}-of-\d{5,})")  # of a TensorFlow checkpoint
_BESIDE = re.compile(r"(.+\.(?:npz|bin))(?:(?:\.decoder|\.progress)?\.yml|\.optimizer\.npz|\.orig\.npz)")  # of Marian's
_WEIGHTS = (
    *(".npz", ".bin", ".safetensors", ".pt", ".pth", ".ckpt", ".h5", ".hdf5", ".keras", ".msgpack"),
    *(".safetensors.index.json", ".bin.index.json"),
)


@dataclass(frozen=True)
class Wanted:
    """Which files of the directory ``below`` are wanted: of the ``checkpoints`` of these names, and what belongs to
    all; None for everything."""

    checkpoints: frozenset[str] | None = None
    below: str = ""

    def __call__(self, name: str) -> bool:
        return self.checkpoints is None or self._of(name) in (None, *self.checkpoints)

    def chosen(self, name: str) -> bool:
        """Whether the file is a part of a chosen checkpoint."""
        return self.checkpoints is not None and self._of(name) in self.checkpoints

    def _of(self, name: str) -> str | None:
        return _checkpoint(name.removeprefix(self.below))


def state_files(names: Iterable[str], choice: str) -> list[str]:
    """Those of ``names`` in which TensorFlow says which checkpoint has the role ``choice``."""
    if choice == "last":
        return [name for name in names if name == "checkpoint"]
    return [name for name in names if choice == "best" and re.fullmatch(r"best\w*checkpoint", name)]


def wanted(names: Iterable[str], choice: str, referred: Iterable[str] = ()) -> Wanted:
    """What ``choice`` (a name, or a role) asks for of the files ``names``; everything if they do not tell.

    Args:
        referred: what the state files for this role name.
    """
    checkpoints = {of for name in names if (of := _checkpoint(name)) is not None}
    chosen = checkpoints & {choice, _checkpoint(choice)}
    if not chosen and choice in ROLES:
        last = max((step for name in checkpoints if (step := _step(name)) is not None), default=None)
        chosen = {name for name in checkpoints if _may_be(name, choice, last)}
        chosen |= {of for name in referred if (of := _checkpoint(name)) is not None}
    return Wanted(frozenset(chosen) or None)


def _checkpoint(name: str) -> str | None:
    """What ``@NAME`` calls the checkpoint that this file is a part of; None for what several may share."""
    folder, slash, _ = name.partition("/")
    if slash:
        return folder if re.search(r"\d", folder) else None
    if match := _PARTS.fullmatch(name) or _BESIDE.fullmatch(name):
        return match[1]
    return name if name.endswith(_WEIGHTS) else None


def _step(name: str) -> int | None:
    match = STEP.fullmatch(name)
    return None if match is None else int(match[1])


def _may_be(name: str, role: str, last: int | None) -> bool:
    """A file by the words in its name, or as where Marian saves between its bests; a directory by the highest step."""
    if not name.endswith(_WEIGHTS):
        return role == "last" and last is not None and _step(name) == last
    words = re.split(r"[^a-z]+", name.lower())
    if role in words:
        return True
    return role != "best" and name.endswith((".npz", ".bin")) and not {"best", "iter"} & set(words)
