"""CRC-32C (Castagnoli) in numpy, at about the speed at which memory is copied.

A checksum is the remainder of the data, as a polynomial over GF(2), by ``P``. Long data is folded first: a multiple
of ``P`` with four terms, x^64a + x^64b + x^64c + 1, lets a 64-bit word be replaced by its exclusive or into three
later words, which are whole arrays at a time. What remains is halved until one word is left: each pair of neighbours
becomes one by advancing the left over the right. Only the last bytes go through the usual table.

Definition: RFC 3720, appendix B.4. The masking is TensorFlow's and leveldb's (leveldb, util/crc32c.h).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # bits reversed: the lowest bit is the highest power
_WINDOW, _FOLDS = 5685, (5685 - 1362, 5685 - 426, 5685)  # words: a, and a - b, a - c, a; found by search
_BLOCK = _FOLDS[0]  # words that can be folded at once, since none of them falls onto another
_CHUNK = 8 * _BLOCK
_MASK = 0xA282EAD8

Words = NDArray[np.uint32]


@functools.cache
def _byte_table() -> Words:
    """What each state of 0 to 255 becomes after a byte of zeros."""
    states: Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        states = (states >> np.uint32(1)) ^ (states & np.uint32(1)) * np.uint32(_POLYNOMIAL)
    return states


@functools.cache
def _byte_states() -> tuple[int, ...]:
    return tuple(_byte_table().tolist())


@functools.cache
def _advance_tables(level: int) -> Words:
    """For 2**level words of zeros: what each of the 256 values of each of a word's four bytes becomes."""
    if level:
        return _advance(_advance_tables(level - 1), level - 1)
    states: Words = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    for _ in range(4):
        states = _byte_table()[states & 255] ^ (states >> 8)
    return states


def _advance(states: Words, level: int) -> Words:
    """Each of ``states`` after 2**level words of zeros."""
    tables = _advance_tables(level)
    result: Words = tables[0].take(states & 255)
    result ^= tables[1].take((states >> 8) & 255)
    result ^= tables[2].take((states >> 16) & 255)
    result ^= tables[3].take(states >> 24)
    return result


def _halve(words: Words) -> int:
    """The remainder of ``words``, at least one."""
    level = 0
    while words.size > 1:
        if words.size & 1:
            words = np.concatenate([np.zeros(1, np.uint32), words])  # zeros in front change nothing
        words = _advance(words[0::2], level) ^ words[1::2]
        level += 1
    return int(_advance(words, 0)[0])


def _fold(data: NDArray[np.uint8], state: int) -> tuple[Words, int]:
    """Words with the remainder of ``state`` and the beginning of ``data``, and how many bytes that was."""
    work = np.zeros(_WINDOW + _CHUNK, np.uint64)
    raw = work.view(np.uint8)
    window = 8 * _WINDOW
    raw[:window] = data[:window]
    work[:1] ^= np.uint64(state)
    position = window
    while data.size - position >= 8 * _CHUNK:
        raw[window:] = data[position : position + 8 * _CHUNK]
        for start in range(0, _CHUNK, _BLOCK):
            block = work[start : start + _BLOCK]
            for distance in _FOLDS:
                work[start + distance : start + distance + _BLOCK] ^= block
        work[:_WINDOW] = work[_CHUNK:].copy()
        position += 8 * _CHUNK
    return work[:_WINDOW].view(np.uint32), position


def crc32c(data: Any, crc: int = 0) -> int:
    """The CRC-32C of ``data`` (bytes, or anything with a contiguous buffer), continuing ``crc`` of what came before."""
    array = np.frombuffer(data, np.uint8)
    state = crc ^ 0xFFFFFFFF
    if array.size >= 8 * (_WINDOW + _CHUNK):
        words, used = _fold(array, state)
        state = _halve(words)
        array = array[used:]
    if array.size >= 512:
        whole = array.size & ~3
        words = np.frombuffer(array[:whole].tobytes(), "<u4").astype(np.uint32)
        words[0] ^= np.uint32(state)
        state = _halve(words)
        array = array[whole:]
    table = _byte_states()
    for byte in array.tobytes():
        state = table[(state ^ byte) & 255] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """``crc`` as TensorFlow and leveldb store it: rotated and shifted, since checksums of checksums are weak."""
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF
