"""The command line says what there is, and what is wrong in one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

import warmstart
from warmstart import cli
from warmstart.cli import verbs

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A parent that is finished and a child that was stopped."""
    monkeypatch.chdir(tmp_path)
    config = "start: [{start}]\ntraining: {{steps: 4}}\n"
    for name, start in (("parent", ""), ("child", "{source: runs/parent, mode: init}")):
        run = Path("runs", name)
        for step in (2, 4):
            (run / f"checkpoints/step-{step:08d}").mkdir(parents=True)
            (run / f"checkpoints/step-{step:08d}/state.json").write_text("{}")
        (run / "config.yaml").write_text(config.format(start=start))
        (run / "plan.json").write_text("{}")
        rows = [{"step": step, "validation/loss": 8 / step, "train/loss": 9 / step} for step in (2, 4)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("runs/parent/model").mkdir()
    Path("runs/parent/model/warmstart.json").write_text("{}")
    Path("runs/parent/model/lineage.json").write_text('{"step": 4, "starts": []}')
    shutil.rmtree("runs/child/checkpoints/step-00000004")
    return tmp_path


@pytest.mark.parametrize("group", [[], ["cache"], ["stt"]], ids=str)
def test_no_line_of_the_help_is_cut(call, group):
    status, out, _ = call(*group, "--help")
    assert status == 0
    assert [line for line in out.partition("Commands:")[2].splitlines() if line.endswith("...")] == []


@pytest.mark.parametrize(
    "verb", [[], ["train"], ["cache", "list"], ["stt", "train"], ["ct2-marian-converter"]], ids=str
)
def test_help_has_a_short_name(call: Call, verb: list[str]) -> None:
    assert call(*verb, "-h") == call(*verb, "--help")
    assert call(*verb, "-h")[0] == 0


def test_every_option_says_what_it_is_for() -> None:
    def silent(command: Any, name: str) -> list[str]:
        below = [
            found for key, one in getattr(command, "commands", {}).items() for found in silent(one, f"{name} {key}")
        ]
        return below + [f"{name} {parameter.name}" for parameter in command.params if not parameter.help]

    assert silent(get_command(verbs.app), "warmstart") == []


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "warmstart", "inspect"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Usage: python -m warmstart inspect" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_said_in_four_lines(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "warmstart", "--version"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: cannot be written",
        "  where: standard output",
        f"  found: {os.strerror(errno.ENOSPC)}",
        "  to do: free some space on this disk, or write to another one",
    ]


def test_runs_lists_and_tells_where_they_came_from(call: Call, places: Path) -> None:
    status, out, err = call("runs")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[:3] == [["in", "runs:"], [], ["run", "state", "step", "best", "start", "size", "active"]]
    assert rows[3][:7] == ["child", "stopped", "2/4", "loss", "2", "@4", "init"]
    assert rows[4][:8] == ["parent", "finished", "4/4", "loss", "2", "@4", "from", "scratch"]
    assert call("runs", "runs/child", "--lineage")[1] == "runs/child\n└── init parent (step 4)\n    └── from scratch\n"
    found = json.loads(call("runs", "runs/parent", "--json")[1])
    assert (found[0]["state"], found[0]["checkpoints"]) == ("finished", [2, 4])


def test_runs_with_nothing_to_list(call: Call, tmp_path: Path) -> None:
    status, out, _ = call("runs", tmp_path)
    assert (status, out) == (0, f"no runs below {tmp_path}; `warmstart train CONFIG` begins one\n")
    assert call("runs", tmp_path, "--json")[1] == "[]\n"
    assert call("runs", tmp_path / "nowhere") == (1, "", f"error: this does not exist\n  where: {tmp_path}/nowhere\n")
    status, _, err = call("runs", "--jsn")
    assert status == 2
    assert "--json" in err


def test_damaged_runs_are_listed_with_the_others(call: Call, places: Path) -> None:
    Path("runs/child/metrics.jsonl").write_text("what?\n")
    status, out, err = call("runs")
    assert status == 1
    assert [line.split()[0] for line in out.splitlines()[3:]] == ["child", "parent"]
    assert err == "damaged: runs/child/metrics.jsonl:1: this line is not a record of a run\n"


def test_pinning(call: Call, places: Path) -> None:
    assert call("runs", "runs/parent", "--pin", 2, "--pin", 4) == (0, "pinned: 2, 4\n", "")
    assert call("runs", "runs/parent", "--unpin", 2, "--unpin", 4) == (0, "pinned: none\n", "")
    status, _, err = call("runs", "runs/child", "--pin", 4)
    assert (status, err) == (1, "error: there is no checkpoint of step 4\n  where: runs/child\n  expected: one of 2\n")
    assert call("runs", "runs/parent", "runs/child", "--pin", 2)[0] == 1
    assert call("runs", "--pin", 2)[2].startswith("error: this is no run\n  where: .\n")
    assert not list(places.rglob("PINNED"))


def test_curves_and_compare_take_runs_with_and_without_labels(call: Call, places: Path) -> None:
    assert call("curves", "runs", "--output", "all.svg") == (0, "curves: all.svg, all.csv\n", "")
    assert Path("all.csv").read_text().splitlines()[:2] == ["run,step,train/loss,validation/loss", "child,2,4.5,4.0"]
    status, out, _ = call("compare", "runs/parent", "b=runs/child", "--curves", "b.png")
    assert status == 0
    assert out.splitlines()[1].split() == ["step", "parent", "b", "gain"]
    assert out.splitlines()[-1] == "curves: b.png, b.csv"
    status, _, err = call("curves", "runs", "--metric", "validation/bleu")
    assert status == 1
    assert "validation/bleu\n  expected: train/loss, validation/loss\n" in err
    assert not Path("curves.png").exists()
    status, out, err = call("compare", "runs", "--metric", "validation/bleu")
    assert (status, out) == (1, "")
    assert "validation/bleu\n  expected: train/loss, validation/loss\n" in err
    for wrong in ("=runs/child", "child="):
        assert call("curves", wrong)[::2] == (1, f"error: {wrong!r} names no run\n  expected: RUN or LABEL=RUN\n")


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkpoints ``a`` and ``b`` of one array each, and ``c``, which is ``a`` again."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("a", 1), ("b", 2), ("c", 1)):
        np.savez(f"{name}.npz", **{"layers.0.w": np.full((2, 3), value, np.float32)})


def test_diff_ends_like_diff(call: Call, two: None) -> None:
    assert call("diff", "a.npz", "c.npz") == (0, "A  a.npz: npz\nB  c.npz: npz\n\nthe same       all 1 array\n", "")
    status, out, err = call("diff", "a.npz", "b.npz")
    assert (status, err) == (1, "")
    assert out.splitlines()[-1].split() == ["layers.0.w", "1", "0.5", "1.000000", "all"]
    assert call("diff", "a.npz", "b.npz", "--tolerance", 1)[0] == 0
    assert call("diff", "a.npz", "b.npz", "--relative", 0.5)[0] == 0
    facts = json.loads(call("diff", "a.npz", "b.npz", "--json")[1])
    assert (facts["same"], facts["entries"][0]["absolute"]) == (False, 1)
    status, out, err = call("diff", "a.npz", "gone.npz")
    assert (status, out) == (2, "")
    assert err.startswith("error: no such file or directory\n")
    assert call("diff", "a.npz", "b.npz", "--names", "x*")[0] == 2
    assert call("diff", "a.npz")[0] == 2
    assert call("diff", "a.npz", "b.npz", "--tolerance", "-1")[0] == 2


def test_inspect_names_and_json(call: Call, two: None) -> None:
    status, out, _ = call("inspect", "a.npz", "--names", "*.w")
    assert (status, out.splitlines()[-1].split()) == (0, ["layers.0.w", "2×3", "float32", "24", "bytes"])
    status, out, err = call("inspect", "a.npz", "--names", "*.v", "--names", "layers.0.x")
    assert (status, out) == (1, "")
    assert "'*.v' matches nothing" in err
    assert "similar: layers.0.w" in err
    facts = json.loads(call("inspect", "a.npz", "--stats", "--json")[1])
    assert {"format", "family", "dialect", "step", "metadata", "entries"} <= set(facts)
    entry = facts["entries"][0]
    assert {key: entry[key] for key in ("name", "shape", "dtype", "nbytes")} == {
        "name": "layers.0.w",
        "shape": [2, 3],
        "dtype": "float32",
        "nbytes": 24,
    }
    assert (entry["stats"]["mean"], entry["stats"]["zeros"]) == (1, 0)


def test_extract_says_what_it_wrote(call: Call, two: None) -> None:
    status, out, err = call("extract", "a.npz", "out.safetensors", "--names", "layers*")
    assert (status, err) == (0, "")
    assert out == f"out.safetensors: safetensors, 1 array, {Path('out.safetensors').stat().st_size} bytes\n"
    assert call("extract", "a.npz", "out.safetensors")[0] == 1
    facts = json.loads(call("extract", "a.npz", "out.safetensors", "--force", "--json")[1])
    assert facts["arrays"] == 1


def test_errors_cannot_steer_the_terminal(call: Call, two: None) -> None:
    status, _, err = call("inspect", "\x1b]0;owned\x07.npz")
    assert status == 1
    assert err.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("given", "alone", "expected"),
    [
        ({}, True, "30000"),
        ({}, False, "3000"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, True, None),
        ({"GOMP_SPINCOUNT": "7"}, True, "7"),
    ],
)
def test_how_threads_wait(monkeypatch, given, alone, expected):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "_alone", lambda: alone)
    cli.wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")

    monkeypatch.setattr(verbs, "app", run)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    assert "torch is not installed" in (printed := capsys.readouterr().err)
    assert "warmstart[train]" in printed
    monkeypatch.setattr(verbs, "app", lambda: __import__("nothing_of_this_name"))
    with pytest.raises(ModuleNotFoundError):
        cli.main()


def test_the_version_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["warmstart", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out == f"warmstart {warmstart.__version__}\n"
