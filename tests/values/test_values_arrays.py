"""Statistics and differences agree with numpy on whole arrays, whatever the dtype, layout and size."""

from __future__ import annotations

import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from warmstart.values.difference import difference
from warmstart.values.statistics import CHUNK, pooled, statistics

DTYPES = ["float32", "float16", "float64", "int8", "uint8", "int64", "uint64", "bool", "bfloat16", "float8_e4m3fn"]


def dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def values(name: str, shape: tuple[int, ...] = (3, CHUNK // 2 + 5), seed: int = 0) -> np.ndarray:
    """More than one chunk of values that the dtype can hold."""
    chance = np.random.default_rng(seed)
    if name in ("bool", "uint8", "uint64"):
        return chance.integers(0, 2, shape).astype(dtype(name))
    return (chance.standard_normal(shape) * 3).astype(dtype(name))


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_statistics_are_numpys(name: str, transposed: bool) -> None:
    array = values(name).T if transposed else values(name)
    wide = array.astype(np.float64)
    found = statistics(array)
    assert (found.count, found.nan, found.inf) == (array.size, 0, 0)
    assert (found.min, found.max, found.zeros) == (wide.min(), wide.max(), np.count_nonzero(wide == 0))
    assert found.mean == pytest.approx(wide.mean(), rel=1e-12, abs=1e-15)
    assert found.std == pytest.approx(wide.std(), rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, min_side=0, max_side=7)), min_size=1, max_size=4))
def test_pooling_is_the_statistics_of_all_together(arrays: list[np.ndarray]) -> None:
    together, apart = statistics(np.concatenate([a.ravel() for a in arrays])), pooled([statistics(a) for a in arrays])
    assert (together.count, together.zeros, together.nan, together.inf) == (
        apart.count,
        apart.zeros,
        apart.nan,
        apart.inf,
    )
    assert (together.min, together.max) == (apart.min, apart.max)
    if together.count:
        scale = max(abs(together.min or 0), abs(together.max or 0))
        assert apart.mean == pytest.approx(together.mean, abs=1e-9 * scale)
        assert apart.std == pytest.approx(together.std, abs=1e-6 * scale)


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    found = statistics(np.array([np.nan, np.inf, -np.inf, 0, -0.0, 3], np.float32))
    assert (found.count, found.nan, found.inf, found.zeros, found.min, found.max) == (3, 1, 2, 2, 0, 3)
    nothing = statistics(np.full((2, 2), np.nan))
    assert (nothing.count, nothing.nan, nothing.min, nothing.mean, nothing.std) == (0, 4, None, None, None)
    assert statistics(np.zeros((0, 3))).count == 0
    assert statistics(np.asarray(2.5, np.float32)).mean == 2.5
    huge = statistics(np.array([1.7e308, 1.7e308, -1.7e308]))
    assert (huge.min, huge.max, huge.mean, huge.std) == (-1.7e308, 1.7e308, None, None)
    assert statistics(np.array([2**63 - 1, -(2**63)])).max == 2**63 - 1
    assert statistics(np.array([1 + 2j, np.nan])).count == 3


def test_a_mean_far_from_zero_keeps_its_deviation() -> None:
    array = 1e6 + np.random.default_rng(0).standard_normal(3 * CHUNK)
    assert statistics(array).std == pytest.approx(array.std(), rel=1e-9)


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("b", DTYPES)
def test_differences_are_numpys(a: str, b: str) -> None:
    x, y = values(a, (7, 11)), values(b, (7, 11), seed=1)
    wide, other = x.astype(np.float64), y.astype(np.float64)
    apart, size = np.abs(wide - other), np.maximum(np.abs(wide), np.abs(other))
    found = difference(x, y)
    assert (found.different, found.nonfinite) == (np.count_nonzero(apart), 0)
    assert found.absolute == apart.max()
    assert found.relative == pytest.approx(np.max(apart[apart > 0] / size[apart > 0], initial=0))
    assert found.cosine == pytest.approx(np.vdot(wide, other) / np.linalg.norm(wide) / np.linalg.norm(other))
    turned = difference(x.T, y.T)
    assert (turned.different, turned.absolute) == (found.different, found.absolute)
    assert turned.cosine == pytest.approx(found.cosine)


def test_equal_arrays_are_equal_in_every_layout() -> None:
    x = values("float32", (64, 48))
    for y in (x.copy(), np.asfortranarray(x), x.astype(np.float64), x.astype(">f4")):
        found = difference(x, y)
        assert (found.different, found.absolute, found.relative) == (0, 0, 0)
        assert found.cosine == pytest.approx(1)
    assert difference(np.zeros((0, 2)), np.ones((0, 2))).different == 0
    assert difference(np.zeros(3), np.zeros(3, np.float32)).cosine == 1
    assert difference(np.zeros(3), np.ones(3)).cosine is None


def test_nan_equals_nan_and_is_never_lost() -> None:
    a = np.array([np.nan, np.inf, np.nan, 1, -np.inf, -0.0])
    b = np.array([np.nan, np.inf, 1, 1, np.inf, 0.0])
    found = difference(a, b)
    assert (found.different, found.nonfinite, found.absolute, found.cosine) == (2, 2, 0, 1)
    for value in (found.absolute, found.relative, found.cosine):
        assert math.isfinite(value)
    over = difference(np.array([1.7e308]), np.array([-1.7e308]))
    assert math.isfinite(over.absolute)
    assert 0 <= over.relative <= 2


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [
        (np.array([2**62 + 1]), np.array([2**62]), 1),
        (np.array([-(2**63)]), np.array([2**63 - 1]), 2**64 - 1),
        (np.array([2**64 - 1], np.uint64), np.array([-1]), 2**64),
        (np.array([2**64 - 1], np.uint64), np.array([2**64 - 2], np.uint64), 1),
        (np.array([-128], np.int8), np.array([255], np.uint8), 383),
        (np.array([True]), np.array([2**64 - 1], np.uint64), 2**64 - 2),
    ],
)
def test_integers_are_compared_exactly(a: np.ndarray, b: np.ndarray, apart: int) -> None:
    for x, y in ((a, b), (b, a)):
        assert (difference(x, y).different, difference(x, y).absolute) == (1, float(apart))


def test_tolerances() -> None:
    a, b = np.array([1.0, 100.0, 0.0]), np.array([1.001, 100.1, 0.0005])
    assert difference(a, b).different == 3
    assert difference(a, b, tolerance=0.01).different == 1
    assert difference(a, b, relative=0.01).different == 1
    assert difference(a, b, tolerance=0.001, relative=0.01).different == 0
    assert difference(a, b, tolerance=1).absolute == pytest.approx(0.1)


def test_memory_is_bounded_by_chunks() -> None:
    a = np.ones((1 << 22,), np.float32)
    b = a + np.float32(1e-3)
    tracemalloc.start()
    statistics(a)
    difference(a, b)
    difference(a.reshape(2048, 2048).T, b.reshape(2048, 2048))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 2**20
