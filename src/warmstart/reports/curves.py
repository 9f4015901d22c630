"""Learning curves of one or several runs: a picture, and the numbers in it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from warmstart.errors import ConfigError, MissingExtra, SourceError
from warmstart.reports.runs import find_runs
from warmstart.sources.uri import at_home
from warmstart.storage import atomic
from warmstart.training.metrics import read_metrics

# Okabe and Ito 2008, which people with any kind of colour vision tell apart; yellow is too pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", ":")  # for the runs after the seventh
LOWER_IS_BETTER = frozenset({"loss", "nll", "perplexity", "cer", "wer", "ter"})
PICTURES = (".png", ".svg")
_COLUMNS = 3
_WIDTH, _HEIGHT = 4.4, 3.3  # of a panel, inches
_LINE = 0.22  # of the legend, inches
_POINTS = 6.0  # about the width of a character

Records = Sequence[Mapping[str, Any]]


def open_runs(items: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Label → records of the runs ``[LABEL=]RUN``; a directory without a label may hold several, and a run without a
    label is taken once.

    Labels are names of directories, with as much of the path in front as tells them apart.

    Raises:
        ConfigError: no run has this label alone, or one has measured nothing yet.
        SourceError: there is no run.
        FormatError: a line of its metrics is damaged.
    """
    labelled: list[tuple[str | None, Path]] = []
    for item in items:
        label, sign, rest = item.partition("=")
        if sign and not Path(item).exists():
            if not label or not rest:
                raise ConfigError(f"{item!r} names no run", expected="RUN or LABEL=RUN")
            labelled.append((label, at_home(rest)))
        else:
            named = {path.resolve() for _, path in labelled}
            labelled += [(None, run) for run in _runs_in(Path(item)) if run.resolve() not in named]
    names = iter(_labels([path for label, path in labelled if label is None]))
    records: dict[str, list[dict[str, Any]]] = {}
    for given, path in labelled:
        label = next(names) if given is None else given
        if label in records:
            raise ConfigError(f"two runs have the label {label!r}", todo="give each its own: LABEL=RUN")
        if not path.is_dir():
            raise SourceError("this run does not exist", where=path)
        records[label] = read_metrics(path)
        if not records[label]:
            raise SourceError("this run has measured nothing yet", where=path)
    return records


def _runs_in(path: Path) -> list[Path]:
    if (path / "metrics.jsonl").is_file() or not path.is_dir():
        return [path]
    found = list(find_runs([path]))
    if not found:
        raise SourceError("there is no run in this directory", where=path)
    return [run for run in found if run == path or (run / "metrics.jsonl").is_file()]


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ."""
    parts = [path.resolve().parts for path in paths]
    longest = max(map(len, parts), default=0)
    for count in range(1, longest + 1):
        labels = ["/".join(p[-count:]) for p in parts]
        if len(set(labels)) == len(labels):
            break
    return [] if not parts else labels


def series(records: Records, metric: str) -> list[tuple[int, float]]:
    """(step, value) of every record that has a finite ``metric``, in order."""
    return [(int(r["step"]), float(r[metric])) for r in records if r.get(metric) is not None]


def default_metrics(runs: Mapping[str, Records]) -> list[str]:
    """Losses of training and validation, then everything else that evaluations measured."""
    measured = dict.fromkeys(n for records in runs.values() for r in records for n in r if n.startswith("validation/"))
    losses = ["train/loss", "validation/loss"]
    there = [name for name in losses if any(series(records, name) for records in runs.values())]
    return there + [name for name in measured if name not in losses]


def require_measured(runs: Mapping[str, Records], metrics: Sequence[str]) -> None:
    """Raises ``ConfigError``: there are no ``metrics``, or some that no run has a value of."""
    known = sorted({name for records in runs.values() for record in records for name in record if "/" in name})
    unknown = [metric for metric in metrics if not any(series(records, metric) for records in runs.values())]
    if unknown or not metrics:
        raise ConfigError("no run has such values", where=", ".join(unknown) or "metrics", expected=", ".join(known))


def write_curves(runs: Mapping[str, Records], metrics: Sequence[str], path: Path) -> list[Path]:
    """Draw one panel a metric with one line a run as PNG or SVG, and write the numbers beside it as CSV.

    The CSV has a row for each step that a run has measured: ``run``, ``step`` and the metrics, empty where there is
    no value. For a ``path`` that ends in ``.csv`` nothing is drawn. Returns the files written.

    Args:
        runs: label → records (:func:`open_runs`).
        metrics: names of fields, such as ``validation/loss``.

    Raises:
        ConfigError: a metric that no run has, nothing to draw, or another kind of file.
        MissingExtra: matplotlib is not installed.
        StorageError: a file cannot be written.
    """
    if path.suffix not in (*PICTURES, ".csv"):
        raise ConfigError("curves are written as PNG, SVG or CSV", where=path, expected=".png, .svg or .csv")
    require_measured(runs, metrics)
    files = [path.with_suffix(".csv")]
    if path.suffix in PICTURES:
        atomic.write_bytes(path, _picture(runs, metrics, path.suffix[1:]))
        files.insert(0, path)
    atomic.write_text(files[-1], _table(runs, metrics))
    return files


def _table(runs: Mapping[str, Records], metrics: Sequence[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "step", *metrics])
    for label, records in runs.items():
        values = {metric: dict(series(records, metric)) for metric in metrics}
        for step in sorted({step for points in values.values() for step in points}):
            writer.writerow([label, step, *(values[metric].get(step, "") for metric in metrics)])
    return out.getvalue()


def _picture(runs: Mapping[str, Records], metrics: Sequence[str], kind: str) -> bytes:
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "train") from error
    columns = min(len(metrics), _COLUMNS if len(metrics) != 4 else 2)
    rows = math.ceil(len(metrics) / columns)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 10, "text.parse_math": False}):
        figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), dpi=144, layout="constrained")
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
        for axes, metric in zip(panels, metrics, strict=False):
            _draw_panel(axes, runs, metric)
        for axes in panels[len(metrics) :]:
            axes.remove()
        _draw_legend(figure, list(runs))
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _draw_legend(figure: Any, labels: Sequence[str]) -> None:
    """One for all panels, above them, in as many columns as fit."""
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    room = int(figure.get_figwidth() * 72 / _POINTS)  # in characters
    texts = [label if len(label) < room - 8 else "…" + label[9 - room :] for label in labels if label in lines]
    columns = max(1, room // (max(map(len, texts)) + 8))
    handles = [lines[label] for label in labels if label in lines]
    figure.set_figheight(figure.get_figheight() + _LINE * math.ceil(len(texts) / columns))
    figure.legend(handles, texts, loc="outside upper left", ncols=columns, frameon=False)


def _draw_panel(axes: Any, runs: Mapping[str, Records], metric: str) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    looks = [(colour, style) for style, colour in product(STYLES, COLOURS)]
    drawn: list[float] = []
    for number, (label, records) in enumerate(runs.items()):
        points = series(records, metric)
        if points:
            colour, style = looks[number % len(looks)]
            marker = "o" if len(points) <= 30 else None
            look = {"color": colour, "linestyle": style, "linewidth": 1.6, "marker": marker, "markersize": 3.5}
            axes.plot(*zip(*points, strict=True), label=label, clip_on=False, **look)
            drawn += [value for _, value in points]
    if metric.rpartition("/")[2] not in LOWER_IS_BETTER:
        axes.set_ylim(bottom=min(0.0, *drawn))
    elif min(drawn) > 0 and max(drawn) > 10 * min(drawn):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(drawn) < 1000 * min(drawn) else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelbottom=True)
    axes.set_title(metric, loc="left", fontsize=11)
    axes.set_xlabel("updates")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
