"""Curves show what was measured, the table says it right and within 80 columns."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from warmstart.errors import ConfigError
from warmstart.reports.curves import draw_curves, series, spread
from warmstart.reports.table import comparison_table


def records(start: float, gain: float) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "kind": "validation",
            "validation/loss": start - gain * step / 100,
            "validation/chrf": step * gain,
            "validation/cer": None if step == 0 else 1.0,
        }
        for step in range(0, 101, 10)
    ]


RUNS = {"scratch": records(5.0, 2.0), "transfer": records(3.0, 1.5)}


def test_series_leaves_out_what_was_not_measured() -> None:
    assert series(RUNS["scratch"], "validation/cer")[0] == (10, 1.0)
    assert series(RUNS["scratch"], "validation/loss")[:2] == [(0, 5.0), (10, 4.8)]


def test_spread_keeps_order_and_distance() -> None:
    moved = spread([0.5, 0.1, 0.52, 0.5], 0.1)
    ordered = [moved[i] for i in (1, 0, 3, 2)]
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert spread([0.1, 0.9], 0.1) == [0.1, 0.9]


def test_curves_are_a_png_with_every_run_drawn(tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "curves" / "loss.png"
    draw_curves(RUNS, ["validation/loss", "validation/chrf"], path)
    image = imread(path)[..., :3]
    assert image.shape[1] > image.shape[0]
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        there = (abs(image * 255 - colour) < 2).all(-1)
        left, right = there[:, : image.shape[1] // 2].sum(), there[:, image.shape[1] // 2 :].sum()
        assert min(left, right) > 100


def test_an_unknown_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validation/bleu") as caught:
        draw_curves(RUNS, ["validation/loss", "validation/bleu"], tmp_path / "x.png")
    assert "validation/chrf" in str(caught.value.expected)
    assert not (tmp_path / "x.png").exists()


def test_table_values_gains_and_width() -> None:
    text = comparison_table(RUNS, ["validation/loss", "validation/chrf", "validation/cer"], max_rows=3)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines]
    assert rows[0] == ["validation/loss", "validation/chrf"]
    assert rows[1] == ["step", *["scratch", "transfer", "gain"] * 2]
    assert rows[-1][0] == "100"
    # loss fell from 5 to 3 and from 3 to 1.5: the gain is positive; chrF is 200 and 150: it is negative
    assert rows[4] == ["100", "3.000", "1.500", "+1.500", "200.000", "150.000", "-50.000"]
    assert rows[6] == ["validation/cer"]


def test_long_labels_are_whole_where_they_fit_and_never_widen_the_table() -> None:
    named = {"from scratch": RUNS["scratch"], "transfer": RUNS["transfer"]}
    assert "from scratch" in comparison_table(named, ["validation/loss", "validation/chrf"])
    crowd = {f"a run with quite a long name {i}": RUNS["scratch"] for i in range(6)}
    lines = comparison_table(crowd, ["validation/loss"]).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].split()[-1] == "+0.000"


def test_only_steps_that_all_runs_measured() -> None:
    text = comparison_table({"a": RUNS["scratch"][:3], "b": RUNS["transfer"][1:]}, ["validation/loss"])
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["10", "20"]
    assert "no step" in comparison_table({"a": [], "b": []}, ["validation/loss"])
