"""Layouts of attention return every bit, and say what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from warmstart.spec.attention import Beside, Cut, RotaryHalves
from warmstart.spec.generated import WithZeros
from warmstart.spec.lossy import ExtraRows
from warmstart.spec.op import Op, ShapeMismatch, SlotLost
from warmstart.spec.ops import Chain, Identity, Reshape, Transpose

RNG = np.random.default_rng(0)
GROUPED = Chain((Reshape((-1, 5), (2, 4, 3, 5)), Cut((2, 1, 1), 1), Reshape((2, -1, 3, 5), (-1, 5))))
BIJECTIONS: list[tuple[Op, tuple[int, ...]]] = [
    (Cut((2, 4)), (6, 3)),
    (Cut((1, 3, 2), 1), (2, 6)),
    (RotaryHalves(2, 4), (12, 3)),
    (RotaryHalves(3, 2), (6,)),
    (GROUPED, (24, 5)),
    (Chain((Transpose(), Cut((4, 2, 2)), Beside((RotaryHalves(1, 4), Identity(), Identity())))), (3, 8)),
]


@pytest.mark.parametrize(("op", "shape"), BIJECTIONS)
def test_what_is_read_is_written_again(op, shape):
    array = RNG.standard_normal(shape)
    parts = op.forward([array])
    assert [p.shape for p in parts] == op.forward_shapes([shape])
    (back,) = op.backward(parts)
    np.testing.assert_array_equal(back, array)
    assert op.backward_shapes([p.shape for p in parts]) == [shape]


def test_neighbours_become_halves():
    (out,) = RotaryHalves(1, 4).forward([np.arange(6)])
    assert out.tolist() == [0, 2, 1, 3, 4, 5]


def test_heads_that_share_a_key_lie_together():
    rows = np.arange(8)[:, None] * np.ones(5)  # two groups of two queries, a key and a value, each of one row
    query, key, value = Chain(
        (Reshape((-1, 5), (2, 4, 1, 5)), Cut((2, 1, 1), 1), Reshape((2, -1, 1, 5), (-1, 5)))
    ).forward([rows])
    assert [a[:, 0].tolist() for a in (query, key, value)] == [[0, 1, 4, 5], [2, 6], [3, 7]]


def test_zeros_are_made_and_checked():
    weight = RNG.standard_normal(4).astype(np.float16)
    first, second = WithZeros().backward([weight])
    assert (second.dtype, second.any()) == (weight.dtype, False)
    np.testing.assert_array_equal(WithZeros().forward([first, second])[0], weight)
    with pytest.raises(ShapeMismatch, match="not all zeros"):
        WithZeros().forward([first, first])


def test_skipped_rows_return_as_zeros():
    table = RNG.standard_normal((5, 2))
    (kept,) = ExtraRows(first=2).forward([table])
    (back,) = ExtraRows(first=2).backward([kept])
    np.testing.assert_array_equal(back[2:], table[2:])
    assert not back[:2].any()
    assert ExtraRows(first=2).kind == "lossy"


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (Cut((2, 3)), [(6, 2)]),
        (RotaryHalves(4, 2), [(6, 2)]),
        (RotaryHalves(2, 4), [(6, 2)]),
        (ExtraRows(first=2), [(2, 3)]),
        (WithZeros(), [(2,), (3,)]),
    ],
)
def test_what_does_not_fit(op, shapes):
    with pytest.raises(ShapeMismatch):
        op.forward_shapes(shapes)


def test_means_follow_where_they_can():
    mean = RNG.standard_normal((6,))
    parts = Cut((2, 4)).forward_slot([mean], 1, [(6, 3)])
    assert [p.tolist() for p in parts] == [mean[:2].tolist(), mean[2:].tolist()]
    with pytest.raises(SlotLost):
        Cut((2, 4)).forward_slot([mean], 0, [(6, 3)])
    (turned,) = RotaryHalves(1, 4).forward_slot([mean], 1, [(6, 3)])
    assert turned.tolist() == mean[[0, 2, 1, 3, 4, 5]].tolist()
    for op in (WithZeros(), ExtraRows(first=1)):
        with pytest.raises(SlotLost):
            op.forward_slot([mean], None, [(6,)])
