"""Tables of bijections return every bit; slots follow or say why they cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart.errors import DialectError
from warmstart.formats.checkpoint import Array, Checkpoint, Entry, SlotEntry
from warmstart.spec.generated import Generated
from warmstart.spec.lossy import ExtraRows
from warmstart.spec.mapping import expand, read_through, rule, write_through
from warmstart.spec.op import ShapeMismatch, SlotLost
from warmstart.spec.ops import Chain, PermuteBlocks, Reshape, Split, Transpose, Unstack
from warmstart.spec.templates import matches, problem_with_rename, rename


class Memory(Checkpoint):
    """Arrays in memory, as a checkpoint."""

    def __init__(self, arrays: dict[str, Array], slots: dict[tuple[str, str], tuple[Array, int | None]] | None = None):
        slots = slots or {}
        super().__init__(
            Path("memory"),
            "memory",
            {n: Entry(n, a.shape, a.dtype.name) for n, a in arrays.items()},
            slots={k: SlotEntry(k[0], k[1], a.shape, a.dtype.name, axis) for k, (a, axis) in slots.items()},
        )
        self.arrays, self.states = arrays, slots

    def read(self, name: str) -> Array:
        return self.arrays[name]

    def read_slot(self, parameter: str, slot: str) -> Array:
        return self.states[parameter, slot][0]


RNG = np.random.default_rng(0)
BIJECTIONS = [
    (Transpose(), (3, 4)),
    (Transpose((2, 0, 1)), (2, 3, 4)),
    (Reshape((1, -1), (-1,)), (1, 6)),
    (Reshape((-1, 2, 3), (-1, 6)), (4, 2, 3)),
    (PermuteBlocks((2, 0, 1)), (6, 2)),
    (PermuteBlocks((3, 1, 0, 2), 1), (2, 8)),
    (Split(3), (6, 2)),
    (Split(2, 1), (3, 8)),
    (Unstack(3), (3, 2, 4)),
    (Unstack(2, 1), (3, 2, 4)),
    (Chain((Unstack(2), Transpose())), (2, 3, 4)),
    (Chain((Transpose(), Split(3))), (2, 6)),
]


@pytest.mark.parametrize(("op", "shape"), BIJECTIONS, ids=str)
def test_a_bijection_returns_every_bit_and_its_shapes_agree(op, shape):
    foreign = RNG.standard_normal(shape).astype(np.float32)
    canonical = op.forward([foreign])
    assert [a.shape for a in canonical] == op.forward_shapes([shape])
    assert op.backward_shapes([a.shape for a in canonical]) == [shape]
    (back,) = op.backward(canonical)
    assert back.tobytes() == foreign.tobytes()


@pytest.mark.parametrize(("op", "shape"), BIJECTIONS, ids=str)
def test_a_mean_over_an_axis_follows_or_is_lost(op, shape):
    """Whatever the op says of a mean must be the mean of what it does to the array."""
    foreign = RNG.standard_normal(shape)
    canonical = op.forward([foreign])
    for axis in range(len(shape)):
        try:
            out = op.forward_axis(axis, [shape])
            carried = op.forward_slot([foreign.mean(axis)], axis, [shape])
        except SlotLost:
            continue
        for whole, mean in zip(canonical, carried, strict=True):
            np.testing.assert_allclose(mean, whole.mean(out))


@pytest.mark.parametrize(("op", "shape"), BIJECTIONS, ids=str)
def test_what_follows_comes_back(op, shape):
    """Where a mean, or a state of the parameter's shape, follows an op, it returns through it bit for bit."""
    foreign = RNG.standard_normal(shape)
    shapes = op.forward_shapes([shape])
    (back,) = op.backward_slot(op.forward_slot([foreign], None, [shape]), None, shapes)
    assert back.tobytes() == foreign.tobytes()
    for axis in range(len(shape)):
        mean = foreign.mean(axis)
        try:
            carried, out = op.forward_slot([mean], axis, [shape]), op.forward_axis(axis, [shape])
        except SlotLost:
            continue
        assert op.backward_axis(out, shapes) == axis
        (back,) = op.backward_slot(carried, out, shapes)
        np.testing.assert_array_equal(back, mean)


def test_a_mean_without_a_place_on_the_other_side_is_lost():
    with pytest.raises(SlotLost, match="has no place"):
        Reshape((2, 3), (6,)).backward_slot([np.ones(())], 0, [(6,)])
    with pytest.raises(SlotLost, match="loses what the state is of"):
        ExtraRows(1, 2).backward_slot([np.ones(2)], None, [(2,)])


def test_lossy_and_generated_say_what_they_are():
    assert ExtraRows(1, 2).kind == "lossy"
    assert Chain((Transpose(), ExtraRows(1, 2))).lost == ExtraRows(1, 2).lost
    assert ExtraRows(1, 2).lost.startswith("its 1 first row and its 2 last rows, with which nothing is computed")
    assert not Chain((Transpose(),)).lost
    table = Generated(lambda: np.arange(3.0), (3,))
    assert table.forward([np.arange(3.0)]) == []
    with pytest.raises(ShapeMismatch, match="differ from the computed"):
        table.forward([np.zeros(3)])


@settings(max_examples=30, deadline=None)
@given(layers=st.integers(1, 4), d=st.integers(1, 5), ff=st.integers(1, 5))
def test_stacked_layers_with_adafactor_slots(layers, d, ff):
    """As T5X stores scanned layers: kernels [layers, in, out], row and column means without the averaged axis."""
    table = [rule("mlp.kernel", "layers.{i}.up.weight", Chain((Unstack(layers), Transpose())), gather={"i": layers})]
    kernel = RNG.standard_normal((layers, d, ff))
    slots = {("mlp.kernel", "v_row"): (kernel.mean(2), 2), ("mlp.kernel", "v_col"): (kernel.mean(1), 1)}
    reading = read_through(Memory({"mlp.kernel": kernel}, slots), expand(table))
    for i in range(layers):
        name = f"layers.{i}.up.weight"
        weight = reading.read(name)
        assert weight.shape == (ff, d)
        np.testing.assert_array_equal(weight, kernel[i].T)
        assert set(reading.slot_axes(name)) == {("v", 0), ("v", 1)}
        for (_, axis), (theirs, _) in reading.slot_axes(name).items():
            np.testing.assert_allclose(reading.read_slot(name, theirs), weight.mean(axis))
    written = dict(write_through(expand(table), reading.read, reading.origins))
    assert written["mlp.kernel"]().tobytes() == kernel.tobytes()


def test_a_mean_over_stacked_layers_says_that_it_is_lost():
    table = [rule("w", "layers.{i}.w", Unstack(2), gather={"i": 2})]
    w = RNG.standard_normal((2, 3))
    reading = read_through(Memory({"w": w}, {("w", "v_row"): (w.mean(0), 0)}), expand(table))
    assert reading.slot_axes("layers.0.w") == {}
    assert "mixes the 2 layers" in reading.lost_slots("layers.0.w")["v_row"]


def test_query_key_and_value_joined():
    table = [rule("qkv", ["query", "key", "value"], Split(3))]
    qkv = RNG.standard_normal((6, 2)).astype(np.float32)
    reading = read_through(Memory({"qkv": qkv}, {("qkv", "m"): (2 * qkv, None)}), expand(table))
    np.testing.assert_array_equal(reading.read("key"), qkv[2:4])
    np.testing.assert_array_equal(reading.read_slot("value", "m"), 2 * qkv[4:])
    assert dict(write_through(expand(table), reading.read, reading.origins))["qkv"]().tobytes() == qkv.tobytes()


def test_tables_are_checked():
    with pytest.raises(DialectError, match="two rules of one table write a"):
        expand([rule("a", "x"), rule("a", "y")])
    with pytest.raises(DialectError) as caught:
        read_through(Memory({"w": np.zeros((2, 3, 1))}), expand([rule("w", "v", Transpose())]))
    assert "2 axes are needed, not [2, 3, 1]" in str(caught.value)
    with pytest.raises(DialectError, match="b is needed to write y"):
        list(write_through(expand([rule("y", "b")]), lambda n: np.zeros(1), {}))


def test_names():
    assert (
        rename("encoder.layers.{i}.**", "encoder.layers.{i+2}.**", "encoder.layers.1.ffn.up")
        == "encoder.layers.3.ffn.up"
    )
    assert rename("l{i+1}", "m{i}", "l1") == "m0"
    assert matches("encoder.*.weight", "encoder.norm.weight")
    assert not matches("encoder.*.weight", "encoder.layers.0.weight")
    assert problem_with_rename("a.{i}", "b.{j}") == "{j} stands in the replacement only"
    assert problem_with_rename("a.**", "b") == "1 wildcards on the left, 0 on the right"
