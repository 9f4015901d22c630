"""Batches: exact shares, every example once, purity, seeking, little padding."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart.data.batches import BatchPlan, sequential_batches
from warmstart.data.index import Counts, EncodedSplit
from warmstart.data.permutation import derive_key, permute
from warmstart.data.plan import Position
from warmstart.errors import DataError

EOS = (0, 7)


def make_split(n: int, seed: int = 0, longest: int = 40) -> EncodedSplit:
    """Random lengths; the first token of source i is i + 10."""
    random = np.random.default_rng(seed)
    source = random.integers(2, longest, n)
    target = np.clip(source + random.integers(-3, 4, n), 1, longest)
    s_offsets, t_offsets = (np.concatenate([[0], np.cumsum(x)]).astype(np.int64) for x in (source, target))
    tokens = np.full(s_offsets[-1], 5, np.int32)
    tokens[s_offsets[:-1]] = np.arange(n) + 10
    counts = Counts(n, 0, 0, 0)
    return EncodedSplit(tokens, s_offsets, np.full(t_offsets[-1], 3, np.int32), t_offsets, counts, ("a", "b"))


def make_plan(*sizes: int, **options: object) -> BatchPlan:
    splits = [make_split(n, seed) for seed, n in enumerate(sizes)]
    return BatchPlan(splits, eos_ids=EOS, **{"batch_tokens": 400, "window": 100, **options})  # type: ignore[arg-type]


def epoch(plan: BatchPlan, number: int) -> list[tuple[int, int]]:
    """(task, index) of every example of an epoch, in order."""
    return [
        pair
        for window in range(plan.num_windows)
        for tasks, indices in plan.window_batches(number, window)
        for pair in zip(tasks.tolist(), indices.tolist(), strict=True)
    ]


@given(st.integers(1, 3000), st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_permutation_wherever_it_is_asked(n: int, key: int) -> None:
    whole = permute(np.arange(n), n, key)
    assert sorted(whole.tolist()) == list(range(n))
    some = np.array([n - 1, 0, n // 2])
    assert permute(some, n, key).tolist() == whole[some].tolist()


def test_permute_mixes_well() -> None:
    n = 10_000
    moved = permute(np.arange(n), n, derive_key(1))
    assert abs(np.corrcoef(np.arange(n), moved)[0, 1]) < 0.03
    assert np.count_nonzero(moved == permute(np.arange(n), n, derive_key(2))) < 10
    assert permute(np.array([2**40 - 1]), 2**40, 5)[0] < 2**40
    firsts = Counter(int(permute(np.array([0]), 8, derive_key("x", k))[0]) for k in range(2000))
    assert min(firsts.values()) > 180
    assert max(firsts.values()) < 320


@pytest.mark.parametrize("sizes", [(1,), (7,), (523,), (300, 11, 49)])
def test_every_example_comes_once_an_epoch_by_size(sizes: tuple[int, ...]) -> None:
    plan = make_plan(*sizes)
    expected = {(t, i) for t, n in enumerate(sizes) for i in range(n)}
    orders = [epoch(plan, number) for number in range(3)]
    for order in orders:
        assert len(order) == len(expected)
        assert set(order) == expected
    if len(expected) > 100:
        assert len({tuple(order) for order in orders}) == 3


def test_rates_are_exact_over_every_stretch() -> None:
    rates = [10.0, 17.320508, 22.360680]
    plan = make_plan(100, 300, 1000, rates=rates)
    shares = np.array(rates) / sum(rates)
    previous = [0, 0, 0]
    for position in range(0, 20_000, 37):
        counts = plan.counts(position)
        assert sum(counts) == position
        assert all(now >= before for now, before in zip(counts, previous, strict=True))
        assert np.abs(np.array(counts) - shares * position).max() < 3
        previous = counts
    drawn = Counter(t for t, _ in epoch(plan, 0) + epoch(plan, 1))
    assert [drawn[t] for t in range(3)] == plan.counts(2800)


def test_a_small_task_is_repeated_evenly() -> None:
    plan = make_plan(10, 190, rates=[1, 1])
    seen = Counter(i for t, i in epoch(plan, 0) if t == 0)
    assert sum(seen.values()) == 100
    assert set(seen.values()) == {10}


def test_batches_are_a_pure_function() -> None:
    a, b = make_plan(500, 60, seed=3), make_plan(500, 60, seed=3)
    b.window_batches(5, 1)
    for number, window in [(2, 3), (0, 0), (2, 3)]:
        for x, y in zip(a.window_batches(number, window), b.window_batches(number, window), strict=True):
            assert x[0].tolist() == y[0].tolist()
            assert x[1].tolist() == y[1].tolist()
    assert epoch(a, 0) != epoch(make_plan(500, 60, seed=4), 0)


def test_the_order_is_the_same_on_every_machine() -> None:
    assert permute(np.arange(10), 10, derive_key(0, "order", 0, 0)).tolist() == [8, 1, 3, 0, 4, 5, 7, 6, 2, 9]
    assert derive_key(0, "order", 0, 0) == 4575746531636895025


def test_seeking_equals_iterating() -> None:
    plan = make_plan(350, 40, rates=[3, 1])
    steps = list(islice(plan.iterate(), 200))
    assert steps[-1][0].epoch >= 2
    for start in (0, 1, 17, 60, 150):
        resumed = plan.iterate(steps[start][0])
        for (after, batch), (again, other) in zip(steps[start + 1 : start + 30], resumed, strict=False):
            assert after == again
            assert np.array_equal(batch.source, other.source)
            assert np.array_equal(batch.target_lengths, other.target_lengths)


def test_dealt_batches_are_those_of_one_reader() -> None:
    plan = make_plan(350, 40, rates=[3, 1])
    whole = list(islice(plan.iterate(Position(0, 0, 1)), 31))
    for ahead in (0, 2):
        plan.ahead = ahead
        hands = [list(islice(plan.deal(Position(0, 0, 1), rank, 3), 31)) for rank in range(3)]
        for n, (after, batch) in enumerate(whole):
            assert [hand[n][0] for hand in hands] == [after] * 3
            dealt = [hand[n][1] for hand in hands]
            assert [b is not None for b in dealt] == [n % 3 == rank for rank in range(3)]
            assert np.array_equal(dealt[n % 3].source, batch.source)


def test_batches_hold_their_examples_within_the_budget_with_little_padding() -> None:
    plan = make_plan(4000, batch_tokens=1500, window=4000)
    split = plan.splits[0]
    used = room = 0
    for _, batch in islice(plan.iterate(), len(plan.window_batches(0, 0))):
        assert max(batch.source.size, batch.target.size) <= 1500
        assert batch.source.dtype == batch.target.dtype == np.int32
        assert batch.source[:, 0].tolist() == (batch.indices + 10).tolist()
        assert batch.source_lengths.tolist() == split.source_lengths[batch.indices].tolist()
        for row, length in zip(batch.source, batch.source_lengths, strict=True):
            assert (row[length:] == EOS[0]).all()
            assert (row[:length] != EOS[0]).all()
        for row, length in zip(batch.target, batch.target_lengths, strict=True):
            assert (row[length:] == EOS[1]).all()
            assert (row[:length] == 3).all()
        used += int(batch.source_lengths.sum() + batch.target_lengths.sum())
        room += batch.source.size + batch.target.size
    assert used == len(split.source) + len(split.target)
    assert 1 - used / room < 0.08


def test_batches_of_one_window_are_not_sorted_by_length() -> None:
    widths = [int(batch.source.shape[1]) for _, batch in islice(make_plan(4000, window=4000).iterate(), 100)]
    assert widths != sorted(widths)
    assert abs(np.corrcoef(np.arange(100), widths)[0, 1]) < 0.4


def test_evaluation_sees_everything_once_and_knows_the_order() -> None:
    split = make_split(333)
    batches = list(sequential_batches(split, 400, EOS))
    assert sorted(np.concatenate([batch.indices for batch in batches]).tolist()) == list(range(333))
    assert all(max(batch.source.size, batch.target.size) <= 400 for batch in batches)


def test_impossible_plans_and_positions_are_refused() -> None:
    with pytest.raises(DataError, match="does not fit"):
        make_plan(100, batch_tokens=10)
    for options in ({"rates": [1.0, 2.0]}, {"rates": [0.0]}, {"rates": [float("nan")]}, {"window": 0}):
        with pytest.raises(DataError):
            make_plan(100, **options)
    plan = make_plan(100)
    for position in (Position(0, 9, 0), Position(0, 0, 999), Position(0, 0, -1), Position(-1, 0, 0)):
        with pytest.raises(DataError, match="no such"):
            next(plan.iterate(position))
