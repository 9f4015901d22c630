"""Random orders that need no memory: integers hashed and permuted by a key."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

UInts = NDArray[np.uint64]
ROUNDS = 6


def derive_key(*parts: object) -> int:
    """A 64-bit key, the same on every machine, of ``parts`` by their text."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def mix(values: NDArray[Any], key: int) -> UInts:
    """A 64-bit hash of each value (splitmix64's finaliser; Steele, Lea and Flood 2014)."""
    x: UInts = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(indices: NDArray[Any], n: int, key: int) -> NDArray[np.int64]:
    """Where a random permutation of 0 … n − 1, chosen by ``key``, sends each of ``indices``.

    A balanced Feistel network over the next power of four, walked along its cycle until the value is below
    n (Black and Rogaway 2002): less than four steps on average, for any index, without a table.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = [derive_key(key, r) for r in range(ROUNDS)]
    result: UInts = np.asarray(indices).astype(np.uint64)
    todo = np.arange(len(result))
    while len(todo):
        x = result[todo]
        left, right = x >> half, x & mask
        for round_key in keys:
            left, right = right, left ^ (mix(right, round_key) & mask)
        x = (left << half) | right
        result[todo] = x
        todo = todo[x >= np.uint64(n)]
    return result.astype(np.int64)
