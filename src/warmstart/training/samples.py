"""Sample outputs: a few of each evaluation, to be looked at. ``samples.jsonl`` of a run holds the records
``{"step", "task", "source", "reference", "output"}``; it is cut back like ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def spread(total: int, count: int) -> list[int]:
    """``count`` different indices of ``total`` things (all, if there are fewer), ascending and evenly spread: the
    middles, rounded down, of as many equal parts. They depend on the two numbers alone."""
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def sample_rows(
    task: str, examples: Sequence[Mapping[str, Any]], outputs: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """Records, without the step, of ``count`` examples of a validation split: the same ones at every evaluation.

    Args:
        examples: with ``source`` and ``target``.
        outputs: of the same examples, in the same order.
    """
    if len(examples) != len(outputs):
        raise ValueError(f"{len(examples)} examples and {len(outputs)} outputs")
    return [
        {"task": task, "source": examples[i]["source"], "reference": examples[i]["target"], "output": outputs[i]}
        for i in spread(len(examples), count)
    ]
