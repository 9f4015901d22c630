"""The weights of tasks in a mixture, whatever their examples are, with the semantics of SeqIO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Mixing(Protocol):
    """The keys of a configuration that mix its tasks."""

    @property
    def tasks(self) -> Mapping[str, Any]: ...
    @property
    def rates(self) -> Mapping[str, float] | None: ...
    @property
    def temperature(self) -> float | None: ...
    @property
    def maximum(self) -> int | None: ...


def check_mixing(config: Mixing) -> None:
    """Raises ``ValueError``: ``rates`` that are not those of the tasks, or keys that change nothing beside them."""
    if config.rates is None:
        return
    if set(config.rates) != set(config.tasks):
        raise ValueError(f"rates must name every task: {', '.join(sorted(config.tasks))}")
    if config.temperature is not None or config.maximum is not None:
        raise ValueError("temperature and maximum change nothing beside rates: give one or the other")


def num_examples_rate(
    sizes: Mapping[str, int], maximum: int | None = None, temperature: float = 1.0
) -> dict[str, float]:
    """Mixing rates by size: n, at most ``maximum``, to the power 1/temperature.

    Source: ``seqio.mixing_rate_num_examples``.
    """
    rates: dict[str, float] = {}
    for name, size in sizes.items():
        rate = size if maximum is None else min(size, maximum)
        rates[name] = rate ** (1.0 / temperature) if temperature != 1.0 else float(rate)
    return rates


def mixing_rates(config: Mixing, sizes: Mapping[str, int]) -> dict[str, float]:
    """The weight of each task; ``sizes`` are their kept training examples."""
    if config.rates is not None:
        return {name: config.rates[name] for name in sizes}
    return num_examples_rate(sizes, config.maximum, temperature=config.temperature or 1.0)
