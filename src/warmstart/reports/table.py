"""Runs side by side, as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from warmstart.reports.curves import LOWER_IS_BETTER, series

WIDTH = 80
_STEP = 8
_CELL = 9


def comparison_table(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    metrics: Sequence[str],
    *,
    max_rows: int = 8,
) -> str:
    """A table with a row a step that all runs measured, and a column for each metric of each run.

    With two or more runs each metric has a column ``gain``: how much better the last run is than the first, so
    positive is better also where lower values are. Steps are thinned evenly to ``max_rows``, the first and the last
    kept. Blocks that would be wider than 80 columns are put below each other.

    Args:
        runs: label → records of metrics.
    """
    values = {(metric, run): dict(series(records, metric)) for metric in metrics for run, records in runs.items()}
    common = set.intersection(*(set(points) for points in values.values())) if values else set()
    steps = _thin(sorted(common), max_rows)
    if not steps:
        return "no step at which all runs were measured\n"
    headings = [*runs, "gain"] if len(runs) > 1 else list(runs)
    widest = max(_CELL, (WIDTH - _STEP) // len(headings))
    widths = [min(widest, max(_CELL, len(heading) + 2)) for heading in headings]
    per_block = max(1, (WIDTH - _STEP) // sum(widths))
    blocks = [metrics[i : i + per_block] for i in range(0, len(metrics), per_block)]
    first, *_, last = [*runs, *runs]

    def cells(metric: str, step: int) -> list[str]:
        row = [f"{values[metric, run][step]:.3f}" for run in runs]
        if len(runs) > 1:
            gain = values[metric, last][step] - values[metric, first][step]
            row.append(f"{-gain if metric.rpartition('/')[2] in LOWER_IS_BETTER else gain:+z.3f}")
        return row

    lines: list[str] = []
    for block in blocks:
        lines += [""] if lines else []
        lines.append(" " * _STEP + "".join(metric.rjust(sum(widths)) for metric in block))
        lines.append("step".rjust(_STEP) + "".join(map(_fit, headings, widths)) * len(block))
        for step in steps:
            row = [cell.rjust(width) for m in block for cell, width in zip(cells(m, step), widths, strict=True)]
            lines.append(f"{step:>{_STEP}}" + "".join(row))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _fit(label: str, width: int) -> str:
    return (label if len(label) < width else label[: width - 2] + "…").rjust(width)


def _thin(steps: Sequence[int], count: int) -> list[int]:
    if len(steps) <= count:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]
