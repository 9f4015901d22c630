"""The arrays in the golden files of JAX's and Keras's libraries: every value follows from its name and place."""

from __future__ import annotations

import zlib
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def numbers(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Array:
    """Small whole numbers, which every dtype but bool and the 8-bit floats holds exactly."""
    size = int(np.prod(shape, dtype=int))
    values = (np.arange(size) * 7 + zlib.crc32(name.encode()) % 50) % 100
    return (values.reshape(shape) % 2 if dtype == "bool" else values.reshape(shape)).astype(np.dtype(dtype))


PARAMETERS = {
    "encoder/layers_0/attention/query/kernel": ((4, 6), "float32"),
    "encoder/layers_0/scale": ((4,), "bfloat16"),
    "encoder/stacked": ((4, 3, 6), "float32"),
    "token_embedder/embedding": ((10, 4), "float32"),
}
OTHERS = {
    "counts": ((3,), "int64"),
    "flags": ((2, 2), "bool"),
    "half": ((5,), "float16"),
    "single": ((), "float64"),
    "wave": ((2,), "complex64"),
}


def parameters() -> dict[str, Array]:
    return {name: numbers(name, *described) for name, described in PARAMETERS.items()}


def others() -> dict[str, Array]:
    return {name: numbers(name, *described) for name, described in OTHERS.items()}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """``a/b`` as a dictionary in a dictionary."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        node = tree
        *above, last = name.split("/")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def slots() -> dict[tuple[str, str], Array]:
    """Adafactor's: the matrices are factored as T5X does from 128 on, the vector is not."""
    found = {}
    for name, (shape, _) in PARAMETERS.items():
        if len(shape) < 2:
            found[name, "v"] = numbers(f"{name}/v", shape)
            continue
        large, second = np.argsort(shape)[-1], np.argsort(shape)[-2]
        found[name, "v_row"] = numbers(f"{name}/v_row", tuple(np.delete(shape, large).tolist()))
        found[name, "v_col"] = numbers(f"{name}/v_col", tuple(np.delete(shape, second).tolist()))
    return found


assert ml_dtypes.bfloat16
