"""Tables of sinusoidal positions: four formulas that differ enough to change outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from warmstart.formats.checkpoint import Array


@lru_cache(maxsize=2)  # compared with other arrays, and then written
def sinusoids(length: int, d_model: int, formula: str = "marian") -> Array:
    """Positions [length, d_model], float32: sin(p·f) beside cos(p·f).

    * ``marian``: f_k = 10000^(-k/(d/2-1)), p from 0. Source: marian-dev ``src/tensors/cpu/tensor_operators.cpp``.
    * ``transformers``: f_k = 10000^(-2k/d), p from 0, in float64 by division. Source: transformers,
      ``modeling_marian.py`` (and ``ct2-marian-converter``, which takes it for Marian's).
    * ``from_one``: as ``marian`` with p from 1: what CTranslate2 computes where a model brings no table. Source:
      CTranslate2 ``src/layers/common.cc``; tensor2tensor and OpenNMT-tf.
    * ``fairseq``: as ``marian`` with p from 2 (the first two rows are padding's), all in float32. Source: fairseq
      ``sinusoidal_positional_embedding.py``; transformers ``modeling_m2m_100.py``. torch's sine is not correctly
      rounded and depends on the processor; this is, and one value in twenty differs in its last bit.
    """
    table = _rows(np.arange(length), d_model // 2, formula)
    table.flags.writeable = False
    return table


def some_of_sinusoids(places: Sequence[int], d_model: int, formula: str) -> Array:
    """Elements of :func:`sinusoids` by their places in its memory."""
    rows, columns = np.divmod(np.asarray(places), d_model)
    return _rows(rows, d_model // 2, formula)[np.arange(len(rows)), columns]


def _rows(places: Array, half: int, formula: str) -> Array:
    """The vectors of the positions ``places``."""
    if formula == "fairseq":
        return _fairseq(places, half)
    if formula == "transformers":
        d_model = 2 * half
        frequencies = np.power(10000, 2 * (np.arange(d_model) // 2) / d_model)
        angles = places[:, None] / frequencies[None]
        return np.concatenate([np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])], axis=1).astype(np.float32)
    start = 1 if formula == "from_one" else 0
    increment = math.log(10000.0) / (half - 1) if half > 1 else 0.0
    angles = (start + places)[:, None] * np.exp(np.arange(half) * -increment)[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _fairseq(places: Array, half: int) -> Array:
    step = np.float32(-math.log(10000) / (half - 1)) if half > 1 else np.float32(0)
    frequencies = np.exp((np.arange(half, dtype=np.float32) * step).astype(np.float64)).astype(np.float32)
    angles = (2 + places).astype(np.float32)[:, None] * frequencies[None]  # [length, half]
    return np.concatenate([np.sin(angles, dtype=np.float64), np.cos(angles, dtype=np.float64)], axis=1).astype(
        np.float32
    )
