"""CTranslate2's engine in a process of its own: whatever a model makes of it, a crash too, is an error here."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.formats.isolated import Isolated

_SECONDS = 86_400.0  # large models take as long as they take
_MEMORY = 2**60
_THREADS = 4  # the library's own choice where nothing is said


class Engine:
    """An object of the library's class ``kind`` (``Translator``, ``models.Whisper`` …) with the model at ``path``.

    Raises:
        MissingExtra: the library is not installed.
        CorruptCheckpoint: of every call: the engine refuses the model, or crashed.
    """

    def __init__(self, path: Path, kind: str, compute_type: str) -> None:
        self._child = Isolated(
            "warmstart.inference.engine_child", path, library="ctranslate2", extra="convert", seconds=_SECONDS,
            memory=_MEMORY,
        )  # fmt: skip
        said = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(said) if said.isdecimal() else min(_THREADS, os.cpu_count() or 1)
        self._child.call("load", kind=kind, device="cpu", compute_type=compute_type, intra_threads=threads)

    def ask(self, method: str, field: str, **arguments: Any) -> list[Any]:
        """``field`` of each result of ``method``."""
        found: list[Any] = self._child.call("ask", method=method, field=field, arguments=arguments)
        return found

    def compute(
        self, method: str, *fields: str, given: NDArray[Any] | None = None, **arguments: Any
    ) -> list[NDArray[np.float32]]:
        """The arrays that ``method`` makes, of a batch of the one array ``given``: its result, or ``fields`` of it."""
        batch = None if given is None else _sent(given[None])
        shapes: Sequence[Sequence[int]] = self._child.call(
            "compute", method=method, fields=fields, arguments=arguments, given=batch
        )
        return [self._child.array("made", tuple(shape), "float32", k=k) for k, shape in enumerate(shapes)]


def _sent(array: NDArray[Any]) -> dict[str, Any]:
    return {"dtype": array.dtype.str, "shape": array.shape, "data": b64encode(array.tobytes()).decode("ascii")}
