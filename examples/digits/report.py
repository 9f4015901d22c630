"""Says and draws what the warm start of the digits example gained: error rates by epoch, over the seeds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from warmstart.training.metrics import read_metrics

KINDS = {"scratch": "#0072B2", "transfer": "#D55E00", "rows": "#009E73"}
METRIC = "validation/cer"


def course(run: Path) -> list[float]:
    """The character error rate after each epoch, in percent; the first is that of the untrained model."""
    records = [record for record in read_metrics(run) if record["kind"] == "validation"]
    return [float(record[METRIC]) for record in records]


def table(courses: dict[str, list[list[float]]], epochs: Sequence[int]) -> str:
    """Mean over the seeds, and the best and worst of them: after some epochs, and averaged over all epochs."""
    heads = [*(f"epoch {epoch}" for epoch in epochs), "all epochs"]
    lines = ["CER %     " + "".join(f"{head:>24}" for head in heads)]
    for kind, runs in courses.items():
        cells = [[run[epoch] for run in runs] for epoch in epochs] + [[mean(run[1:]) for run in runs]]
        said = (f"{mean(cell):.1f} ({min(cell):.1f} to {max(cell):.1f})" for cell in cells)
        lines.append(f"{kind:10}" + "".join(f"{text:>24}" for text in said))
    return "\n".join(lines)


def levels(courses: dict[str, list[list[float]]]) -> str:
    """Epochs until the mean over the seeds falls below some rates; a dash where it never does."""
    means = {kind: [mean(rates) for rates in zip(*runs, strict=True)] for kind, runs in courses.items()}
    lines = ["epochs until the CER is below"]
    for level in (80, 70, 50, 20, 10):
        found = {kind: next((e for e, rate in enumerate(rates) if rate < level), None) for kind, rates in means.items()}
        said = (f"{kind} {'-' if epoch is None else epoch}" for kind, epoch in found.items())
        if any(epoch is not None for epoch in found.values()):
            lines.append(f"{level:>8} %  " + ", ".join(said))
    return "\n".join(lines)


def draw(courses: dict[str, list[list[float]]], path: Path) -> None:
    """One line a run, and a thick one for the mean of each kind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, runs in courses.items():
        learnt = [run[1:] for run in runs]
        epochs = range(1, 1 + len(learnt[0]))
        for run in learnt:
            axes.plot(epochs, run, color=KINDS[kind], linewidth=0.8, alpha=0.5)
        average = [mean(rates) for rates in zip(*learnt, strict=True)]
        axes.plot(epochs, average, color=KINDS[kind], linewidth=2.2, label=f"{kind}, mean of {len(runs)} seeds")
    axes.set(xlabel="epochs", ylabel="character error rate, %", ylim=(0, 105), xlim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path(__file__).parent / "runs", help="folder of the runs")
    runs: Path = parser.parse_args().runs
    courses = {kind: [course(run) for run in sorted(runs.glob(f"{kind}-*"))] for kind in KINDS}
    last = min(len(run) for of_kind in courses.values() for run in of_kind) - 1
    print(table(courses, [epoch for epoch in (5, 10, 20) if epoch <= last] or [last]))
    print(levels(courses))
    draw(courses, runs / "cer.png")
    print(f"curve: {runs / 'cer.png'}")


if __name__ == "__main__":
    main()
