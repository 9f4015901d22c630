"""Samples are the same few examples at every evaluation, spread over the split."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmstart.training.samples import sample_rows, spread


@given(st.integers(0, 10_000), st.integers(0, 50))
def test_spread_is_even_and_of_different_indices(total: int, count: int) -> None:
    chosen = spread(total, count)
    assert len(chosen) == min(total, count)
    assert all(0 <= index < total for index in chosen)
    gaps = [after - before for before, after in itertools.pairwise(chosen)]
    assert all(gap >= 1 and abs(gap - total / len(chosen)) < 1 for gap in gaps)
    if chosen:  # as far from the first as from the last, to within rounding
        assert abs(chosen[0] - (total - 1 - chosen[-1])) <= 1


def test_rows_belong_together_and_do_not_change() -> None:
    examples = [{"source": f"s{i}", "target": f"t{i}"} for i in range(100)]
    outputs = [f"o{i}" for i in range(100)]
    rows = sample_rows("names", examples, outputs, 4)
    assert [row["source"] for row in rows] == ["s12", "s37", "s62", "s87"]
    assert rows[1] == {"task": "names", "source": "s37", "reference": "t37", "output": "o37"}
    later = sample_rows("names", examples, [f"better {o}" for o in outputs], 4)
    assert [row["source"] for row in later] == [row["source"] for row in rows]
    assert sample_rows("names", examples[:2], outputs[:2], 4) == [
        {"task": "names", "source": f"s{i}", "reference": f"t{i}", "output": f"o{i}"} for i in range(2)
    ]
    with pytest.raises(ValueError, match="100 examples and 99 outputs"):
        sample_rows("names", examples, outputs[1:], 4)
