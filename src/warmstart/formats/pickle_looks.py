"""What a pickle that is no checkpoint is a pickle of, for an error message."""

from __future__ import annotations

from pathlib import Path

from warmstart.formats.mapped import head
from warmstart.formats.pickled import PLAIN, Described, PickledArray
from warmstart.formats.pickles import DAMAGED, Machine

_ENOUGH = 16 * 2**20  # bytes: names come early
_PLAIN = {"builtins", "__builtin__", "collections", "copyreg", "copy_reg", "_codecs", "numpy", "argparse", "types"}


def describe(path: Path) -> tuple[str, str]:
    """What was pickled at ``path``, and what to do with it. Nothing of it is run."""
    machine = Machine(head(path, _ENOUGH), PLAIN, lambda _: None)
    try:
        root = machine.run()
    except DAMAGED:  # damaged, or with raw arrays in between, as joblib writes them
        root = None
    packages = dict.fromkeys(name.partition(".")[0] for name in machine.names)
    foreign = [package for package in packages if package not in _PLAIN]
    arrays = isinstance(root, PickledArray) or any(name.endswith("_reconstruct") for name in machine.names)
    if isinstance(root, Described):
        found = f"a pickle of an object of class {root.name[:100]}"
    elif foreign:
        found = f"a pickle with objects of {', '.join(foreign[:4])[:200]}"
    elif root is None:
        found = "a pickle, damaged or of an unknown kind"
    else:
        found = "a pickle of numpy arrays" if arrays else "a pickle of plain data"
    if "torch" in foreign:
        return found + ", made without torch.save", "load it where it was made, and save it with torch.save"
    where = f"with {foreign[0][:50]}, which wrote it," if foreign else "where it was made"
    return found, f"load it {where} and save its arrays as safetensors (loading a pickle runs what is in it)"
