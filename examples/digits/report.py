"""Says and draws what the warm start of the digits example gained: error rates by epoch, over the seeds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from warmstart.training.metrics import read_metrics

KINDS = {"scratch": "#0072B2", "transfer": "#D55E00"}
METRIC = "validation/cer"


def course(run: Path) -> list[float]:
    """The character error rate after each epoch, in percent; the first is that of the untrained model."""
    records = [record for record in read_metrics(run) if record["kind"] == "validation"]
    return [float(record[METRIC]) for record in records]


def table(courses: dict[str, list[list[float]]], epochs: Sequence[int]) -> str:
    """Mean over the seeds, and the best and worst of them."""
    lines = ["CER %     " + "".join(f"{f'epoch {epoch}':>24}" for epoch in epochs)]
    for kind, runs in courses.items():
        cells = [[run[epoch] for run in runs] for epoch in epochs]
        said = (f"{sum(c) / len(c):.1f} ({min(c):.1f} to {max(c):.1f})" for c in cells)
        lines.append(f"{kind:10}" + "".join(f"{cell:>24}" for cell in said))
    return "\n".join(lines)


def sooner(courses: dict[str, list[list[float]]]) -> str:
    """After how many epochs the transfer is where training from scratch ends, by the means."""
    scratch, transfer = ([sum(c) / len(c) for c in zip(*courses[kind], strict=True)] for kind in KINDS)
    epoch = next((epoch for epoch, rate in enumerate(transfer) if rate <= scratch[-1]), None)
    when = "never" if epoch is None else f"after {epoch}"
    return f"the {scratch[-1]:.1f} % of scratch after {len(scratch) - 1} epochs, the transfer has {when}"


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
        mean = [sum(values) / len(values) for values in zip(*learnt, strict=True)]
        axes.plot(epochs, mean, color=KINDS[kind], linewidth=2.2, label=f"{kind}, mean of {len(runs)} seeds")
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
    print(sooner(courses))
    draw(courses, runs / "cer.png")
    print(f"curve: {runs / 'cer.png'}")


if __name__ == "__main__":
    main()
