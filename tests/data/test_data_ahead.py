"""Work done in threads comes in order, and no more of it than asked for."""

from __future__ import annotations

import threading
from itertools import count, islice

import pytest

from warmstart.data.ahead import in_order


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_order_is_kept_whatever_is_done_first(threads: int) -> None:
    second = threading.Event()

    def slow_first(n: int) -> int:
        if n == 0 and threads > 1:
            assert second.wait(5)
        elif n == 1:
            second.set()
        return n * n

    assert list(in_order(slow_first, range(20), threads)) == [n * n for n in range(20)]
    assert list(islice(in_order(slow_first, count(), threads), 5)) == [0, 1, 4, 9, 16]


def test_only_so_much_is_done_ahead() -> None:
    taken: list[int] = []
    results = in_order(lambda n: n, (taken.append(n) or n for n in count()), 2, ahead=5)
    assert [next(results), next(results)] == [0, 1]
    assert taken == list(range(7))
    results.close()  # type: ignore[attr-defined]


def test_an_error_comes_in_its_place() -> None:
    def fails(n: int) -> int:
        if n == 3:
            raise KeyError(n)
        return n

    results = in_order(fails, range(9), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)
