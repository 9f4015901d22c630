"""Eight-bit weights as CTranslate2 defines them."""

from __future__ import annotations

import numpy as np

from warmstart.errors import FormatError
from warmstart.formats.checkpoint import Array


def int8_rows(weight: Array, name: str) -> tuple[Array, Array]:
    """``weight`` [rows, columns] as int8 with one float32 scale a row: q = rint(w·s), s = 127 / max|w|.

    An all-zero row has scale 1. Source: CTranslate2 ``specs/model_spec.py`` (4.8.5), which bounds s so that it is
    finite.

    Raises:
        FormatError: the weight is not finite.
    """
    weight = np.asarray(weight, np.float32)
    largest = np.max(np.abs(weight), axis=1)
    if not np.isfinite(largest).all():
        raise FormatError("a weight that is not finite cannot be quantized", where=name)
    largest = np.where(largest == 0, np.float32(127), np.maximum(largest, np.float32(127) / np.finfo(np.float32).max))
    scale = (np.float32(127) / largest).astype(np.float32)
    return np.rint(weight * scale[:, None]).astype(np.int8), scale
