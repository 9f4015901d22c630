"""Curves show what was measured, the table says it right and within 80 columns."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from warmstart.errors import ConfigError, SourceError, WarmstartError
from warmstart.reports.curves import default_metrics, open_runs, series, write_curves
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


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Makes the directory of a run that measured ``records``."""

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        run = tmp_path / name
        (run / "checkpoints").mkdir(parents=True)
        for file in ("config.yaml", "plan.json"):
            (run / file).write_text("{}")
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run

    return write


def texts(svg: Path) -> dict[str, float]:
    """Text of a picture → its height on it, from above."""
    found = {}
    for element in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text"):
        moved = re.search(r"translate\(\S+ (\S+)\)", element.get("transform", ""))
        found[element.text or ""] = float(moved[1] if moved else element.get("y", "nan"))
    return found


def test_curves_are_a_png_with_every_run_drawn(tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "curves" / "loss.png"
    write_curves(RUNS, ["validation/loss", "validation/chrf"], path)
    image = imread(path)[..., :3]
    assert image.shape[1] > image.shape[0]
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        there = (abs(image * 255 - colour) < 2).all(-1)
        left, right = there[:, : image.shape[1] // 2].sum(), there[:, image.shape[1] // 2 :].sum()
        assert min(left, right) > 100


def test_the_numbers_lie_beside_the_picture(tmp_path: Path) -> None:
    files = write_curves(RUNS, ["validation/loss", "validation/cer"], tmp_path / "a.svg")
    assert files == [tmp_path / "a.svg", tmp_path / "a.csv"]
    assert {"0", "20", "40", "60", "80", "100"} <= set(texts(files[0]))
    with files[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    for label, measured in RUNS.items():
        mine = [row for row in rows if row["run"] == label]
        assert [int(row["step"]) for row in mine] == [record["step"] for record in measured]
        for row, record in zip(mine, measured, strict=True):
            for metric in ("validation/loss", "validation/cer"):
                assert row[metric] == ("" if record[metric] is None else repr(float(record[metric])))
    assert write_curves(RUNS, ["validation/loss"], tmp_path / "b.csv") == [tmp_path / "b.csv"]
    assert not (tmp_path / "b.png").exists()


def test_the_legend_is_above_the_panels_and_axes_are_what_helps(tmp_path: Path) -> None:
    falling = [
        {"step": s, "validation/loss": 8.0 * 0.9 ** (s / 100), "a/bleu": 30 + s / 1000} for s in range(0, 5001, 50)
    ]
    path = tmp_path / "a.svg"
    write_curves({"a run at $5": falling, "_b": falling}, ["validation/loss", "a/bleu"], path)
    there = texts(path)
    assert {"validation/loss", "a/bleu", "updates", "a run at $5", "_b"} <= set(there)
    assert max(there["a run at $5"], there["_b"]) < there["validation/loss"] - 10
    assert {"0.1", "1", "0", "5k"} <= set(there)  # the loss on a logarithmic axis, the score from zero
    again = path.read_bytes()
    write_curves({"a run at $5": falling, "_b": falling}, ["validation/loss", "a/bleu"], path)
    assert path.read_bytes() == again


def test_an_unknown_metric_or_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validation/bleu") as caught:
        write_curves(RUNS, ["validation/loss", "validation/bleu"], tmp_path / "x.png")
    assert "validation/chrf" in str(caught.value.expected)
    with pytest.raises(ConfigError, match=r"\.svg"):
        write_curves(RUNS, ["validation/loss"], tmp_path / "x.jpg")
    assert list(tmp_path.iterdir()) == []


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path, written: Callable[..., Path]) -> None:
    one, other = written("one/child", RUNS["scratch"]), written("other/child", RUNS["transfer"])
    assert open_runs([str(one), str(other)]) == {"one/child": RUNS["scratch"], "other/child": RUNS["transfer"]}
    assert list(open_runs([f"a={one}", str(other), str(other)])) == ["a", "child"]
    assert list(open_runs([str(tmp_path), str(one)])) == ["one/child", "other/child"]
    odd = written("x=y", RUNS["scratch"])
    assert list(open_runs([str(odd)])) == ["x=y"]
    with pytest.raises(ConfigError, match="two runs have the label 'a'"):
        open_runs([f"a={one}", f"a={other}"])


def test_runs_without_anything_to_draw(tmp_path: Path, written: Callable[..., Path]) -> None:
    with pytest.raises(SourceError, match=r"there is no run in this directory\n  where: .*empty"):
        (tmp_path / "empty").mkdir()
        open_runs([str(tmp_path / "empty")])
    with pytest.raises(SourceError, match="does not exist"):
        open_runs([f"a={tmp_path / 'nowhere'}"])
    with pytest.raises(SourceError, match="measured nothing yet"):
        open_runs([str(written("new", []))])
    damaged = written("damaged", RUNS["scratch"])
    with (damaged / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1\n')
    with pytest.raises(WarmstartError, match=r"metrics\.jsonl:12"):
        open_runs([str(damaged)])


def test_losses_come_first_by_default() -> None:
    runs = {"a": [{"step": 1, "train/loss": 2.0, "train/nll": 1.0}, *RUNS["scratch"]]}
    assert default_metrics(runs) == ["train/loss", "validation/loss", "validation/chrf", "validation/cer"]
    assert default_metrics({"a": [{"step": 1, "train/loss": 2.0}]}) == ["train/loss"]


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
