"""Learning curves of one or several runs."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from warmstart.errors import ConfigError, MissingExtra
from warmstart.storage import atomic
from warmstart.training.metrics import read_metrics

__all__ = ["draw_curves", "read_metrics", "series"]

# Okabe and Ito 2008, which people with any kind of colour vision tell apart; yellow is too pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LABEL_HEIGHT = 0.07  # of a panel


def series(records: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    """(step, value) of every record that has a finite ``metric``, in order."""
    return [(int(r["step"]), float(r[metric])) for r in records if r.get(metric) is not None]


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], metrics: Sequence[str], path: Path) -> None:
    """Draw one panel a metric, with one line a run, as PNG.

    Args:
        runs: label → records (:func:`read_metrics`).
        metrics: names of fields, such as ``validation/loss``.

    Raises:
        ConfigError: a metric that no run has, or nothing to draw.
        MissingExtra: matplotlib is not installed.
    """
    known = sorted({name for records in runs.values() for record in records for name in record if "/" in name})
    unknown = [metric for metric in metrics if not any(series(records, metric) for records in runs.values())]
    if unknown or not metrics:
        raise ConfigError("no run has values to draw", where=", ".join(unknown) or "metrics", expected=", ".join(known))
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "train") from error
    figure = Figure(figsize=(5.2 * len(metrics), 3.8), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        _draw_panel(axes, runs, metric)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    atomic.write_bytes(path, buffer.getvalue())


def _draw_panel(axes: Any, runs: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> None:
    ends: list[tuple[float, str, str]] = []
    for number, (label, records) in enumerate(runs.items()):
        points = series(records, metric)
        if points:
            colour = COLOURS[number % len(COLOURS)]
            marker = "o" if len(points) <= 30 else None
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, marker=marker, markersize=3.5)
            ends.append((points[-1][1], label, colour))
    axes.set_title(metric, loc="left", fontsize=11)
    axes.set_xlabel("training steps")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.get_ylim()
    heights = spread([(value - low) / (high - low) for value, _, _ in ends], _LABEL_HEIGHT)
    for height, (_, label, colour) in zip(heights, ends, strict=True):
        axes.annotate(
            label,
            (1.02, height),
            xycoords="axes fraction",
            color=colour,
            va="center",
            fontsize=10,
            annotation_clip=False,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved apart until neighbours are ``gap`` or more from each other, in their order, around their mean."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = list(heights)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    shift = sum(a - b for a, b in zip(heights, moved, strict=True)) / max(1, len(moved))
    return [height + shift for height in moved]
