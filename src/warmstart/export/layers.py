"""A specification filled by hand: ``root.encoder.embeddings.weight = array`` for ``encoder/embeddings/weight``.

For who has arrays and no table of rules. What is written goes through the same plan, ledger and checks as every
conversion: names, shapes, ties, dtypes, numbers that are finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.bundle.model import Model, check_vocabulary_sizes, read_as
from warmstart.checked import Config
from warmstart.errors import ConfigError
from warmstart.export.convert import convert_model
from warmstart.formats.checkpoint import Array, Checkpoint, Entry
from warmstart.models.family import Family
from warmstart.models.registry import dialect
from warmstart.vocabularies.vocabulary import Vocabulary

BY_HAND = Path("filled by hand")


class Layer:
    """A part of a specification. Parts appear when they are named; ``part.layer[2]`` is ``part.layer_2``.

    >>> root = Layer()
    >>> root.encoder.layer[0].ffn.bias = np.zeros(4, np.float32)
    >>> [name for name, _ in root.arrays()]
    ['encoder/layer_0/ffn/bias']
    """

    def __init__(self, parent: Layer | None = None, name: str = "") -> None:
        object.__setattr__(self, "_parts", {})
        object.__setattr__(self, "_place", (parent, name))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._parts:
            self._parts[name] = Layer(self, name)
        return self._parts[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if "/" in name or name.startswith("_"):
            raise ConfigError("this is no name for a part of a specification", found=name)
        there = self._parts.get(name)
        if isinstance(there, Layer) and not isinstance(value, Layer) and next(there.arrays(), None) is not None:
            raise ConfigError(f"{name} has parts already, and cannot be an array too", found=next(there.arrays())[0])
        self._parts[name] = value if isinstance(value, Layer) else _array(name, value)

    def __getitem__(self, index: int) -> Layer:
        parent, name = self._numbered(index)
        layer: Layer = getattr(parent, name)
        return layer

    def __setitem__(self, index: int, value: Layer) -> None:
        setattr(*self._numbered(index), value)

    def _numbered(self, index: int) -> tuple[Layer, str]:
        """Whose part ``self[index]`` is, and its name there."""
        parent, name = self._place
        if parent is None:
            raise ConfigError("only parts of a specification are numbered", found=f"[{index}]", expected="root.part[0]")
        return parent, f"{name}_{index}"

    def __dir__(self) -> list[str]:
        return sorted(self._parts)

    def __repr__(self) -> str:
        return f"Layer({', '.join(f'{name}: {list(a.shape)} {a.dtype.name}' for name, a in self.arrays())})"

    def arrays(self, prefix: str = "") -> Iterator[tuple[str, Array]]:
        """Every array by its name with slashes."""
        for name, part in self._parts.items():
            if isinstance(part, Layer):
                yield from part.arrays(f"{prefix}{name}/")
            else:
                yield f"{prefix}{name}", part

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> Layer:
        """The view of arrays by name, for instance those of an opened ``model.bin``."""
        root = cls()
        for name, array in arrays.items():
            part = root
            *path, last = name.split("/")
            for step in path:
                part = getattr(part, step)
            setattr(part, last, array)
        return root


def _array(name: str, value: Any) -> Array:
    found: object = type(value).__name__
    try:
        array: Array = np.asarray(value)
        if array.dtype.kind not in "OSU":
            return array
    except (TypeError, ValueError, RuntimeError) as error:  # of torch: bfloat16, or what wants a gradient
        found = error
    raise ConfigError("this is no array of numbers", where=name, found=found, todo="give what numpy can read")


class Filled(Checkpoint):
    """The arrays of a :class:`Layer`."""

    def __init__(self, root: Layer) -> None:
        self._arrays = dict(root.arrays())
        entries = {name: Entry(name, a.shape, a.dtype.name) for name, a in self._arrays.items()}
        super().__init__(BY_HAND, "filled", entries)

    def read(self, name: str) -> Array:
        return self._arrays[name]


def write_specification(
    root: Layer,
    destination: str | Path,
    *,
    family: Family,
    config: Config,
    vocabularies: Mapping[str, Vocabulary],
    to: str = "ctranslate2",
    quantize: str | None = None,
    force: bool = False,
) -> dict[str, object]:
    """Write what was filled at ``destination``, in the dialect ``to`` whose names were used.

    Arrays that follow from ``config`` alone (positions, switches) may be left out; where they are given they are
    compared. Of tied arrays one name is enough.

    Raises:
        DialectError: names that the specification does not have, arrays that are missing or of another shape, or
            that contradict each other; all at once.
        BundleError: a vocabulary does not fit. FormatError: an array is not finite. StorageError: the disk.
    """
    model = Model(str(BY_HAND), BY_HAND, Filled(root), vocabularies=dict(vocabularies))
    read_as(model, family, config, dialect(family, to))
    check_vocabulary_sizes(model)
    return convert_model(model, Path(destination), to, quantize=quantize, force=force)
