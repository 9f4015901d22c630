"""Runs are listed as they are, also beside damaged ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from warmstart.errors import ConfigError, SourceError
from warmstart.formats.checkpoint import Entry
from warmstart.formats.safetensors import write_safetensors
from warmstart.reports.runs import (
    PINNED,
    Best,
    checkpoint_steps,
    describe_run,
    find_runs,
    lineage_text,
    pin_checkpoints,
    runs_table,
)
from warmstart.reports.text import readable_size
from warmstart.storage.locks import directory_lock
from warmstart.training import state


def make_run(
    path: Path,
    *,
    checkpoints: Sequence[int] = (),
    losses: Sequence[tuple[int, float | None]] = (),
    lineage: dict[str, Any] | None = None,
    start: Sequence[dict[str, str]] = (),
    **training: Any,
) -> Path:
    path.mkdir(parents=True)
    config = {"run": path.name, "start": list(start), "training": {"steps": 40, **training}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "plan.json").write_text("{}")
    records = [{"step": step, "kind": "validation", "validation/loss": value} for step, value in losses]
    if records:
        (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for step in checkpoints:
        folder = state.checkpoint_path(path, step)
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"step": step}))
    if lineage is not None:
        (path / "model").mkdir()
        (path / "model" / "warmstart.json").write_text("{}")
        (path / "model" / "lineage.json").write_text(json.dumps(lineage))
    return path


def test_states_and_steps(tmp_path: Path) -> None:
    assert describe_run(make_run(tmp_path / "new")).state == "not begun"
    stopped = make_run(tmp_path / "stopped", checkpoints=[10, 20], losses=[(10, 2.0), (30, 1.0)])
    assert (describe_run(stopped).state, describe_run(stopped).step, describe_run(stopped).steps) == ("stopped", 20, 40)
    with directory_lock(stopped):
        now = describe_run(stopped)
        assert (now.state, now.step) == ("training", 30)
        assert now.holder is not None
        assert now.holder.startswith("process ")
    done = make_run(tmp_path / "done", checkpoints=[40], lineage={"starts": [], "trained": 40})
    assert describe_run(done).state == "finished"
    extended = make_run(tmp_path / "extended", checkpoints=[40, 50], lineage={"starts": [], "trained": 40}, steps=60)
    assert describe_run(extended).state == "stopped"
    passed_on = make_run(tmp_path / "use", lineage={"starts": []})
    assert describe_run(passed_on).state == "finished"


def test_a_checkpoint_that_is_not_complete_does_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", checkpoints=[10, 123456789])
    for name in ("step-00000020", ".step-00000030.tmp-1-a", "step-40"):
        (run / "checkpoints" / name).mkdir()
    assert checkpoint_steps(run) == [10, 123456789]
    assert state.latest(run) == run / "checkpoints/step-123456789"


def test_best_is_the_first_of_the_best_by_the_runs_own_metric(tmp_path: Path) -> None:
    losses = [(0, None), (10, 2.0), (20, 1.5), (30, 1.5)]
    assert describe_run(make_run(tmp_path / "min", losses=losses)).best == Best("validation/loss", 1.5, 20)
    assert describe_run(make_run(tmp_path / "max", losses=losses, best_mode="max")).best == Best(
        "validation/loss", 2.0, 10
    )
    assert describe_run(make_run(tmp_path / "other", losses=losses, best_metric="validation/chrf")).best is None


def test_damaged_files_are_named_and_the_rest_is_known(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", checkpoints=[10, 20], losses=[(10, 2.0)], lineage={})
    (run / "metrics.jsonl").open("a").write("{nonsense\n")
    (run / "checkpoints/step-00000020/state.json").write_text("")
    (run / "model/lineage.json").write_text("[]")
    described = describe_run(run)
    assert (described.step, described.steps, described.best) == (20, 40, None)
    where = [problem.partition(": ")[0] for problem in described.problems]
    assert where == [
        f"{run}/metrics.jsonl:2",
        f"{run}/checkpoints/step-00000020/state.json",
        f"{run}/model/lineage.json",
    ]
    for text in ("a: [", "training: 3\nstart: x\n", "- 1\n", "\x00"):
        (run / "config.yaml").write_text(text)
        assert describe_run(run).steps is None
        assert runs_table([describe_run(run)])


def test_files_of_arrays_that_were_cut_off_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", checkpoints=[10, 20], lineage={})
    files = [run / f"checkpoints/step-000000{step}/{name}.safetensors" for step in (10, 20) for name in ("model", "z")]
    for file in (*files, run / "model/model.safetensors"):
        write_safetensors(file, [Entry("w", (100,), "float32")], [np.zeros(100, "f4")], {})
    assert describe_run(run).problems == ()
    for cut, size in ((files[1], 300), (run / "model/model.safetensors", 10)):
        os.truncate(cut, size)
    assert [problem.partition(".safetensors")[0] for problem in describe_run(run).problems] == [
        str(files[1].with_suffix("")),
        str(run / "model/model"),
    ]


def test_runs_are_found_below_directories_once(tmp_path: Path) -> None:
    wanted = [make_run(tmp_path / name) for name in ("a", "a/inner", "b/c")]
    make_run(tmp_path / ".hidden")
    make_run(tmp_path / "a/checkpoints/not-one")
    (tmp_path / "b/only-config").mkdir()
    (tmp_path / "b/only-config/config.yaml").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert list(find_runs([tmp_path, tmp_path / "a"])) == wanted
    assert list(find_runs([tmp_path / "b/c"])) == wanted[2:]
    assert list(find_runs([tmp_path / "b/only-config"])) == []
    with pytest.raises(SourceError, match="this does not exist"):
        list(find_runs([tmp_path / "nowhere"]))
    with pytest.raises(SourceError, match="no directory"):
        list(find_runs([tmp_path / "a/config.yaml"]))


def test_size_is_of_the_run_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    before = describe_run(run).size
    (run / "log.txt").write_bytes(bytes(1000))
    make_run(run / "inner")
    assert describe_run(run).size == before + 1000
    assert describe_run(run).size == sum(p.stat().st_size for p in run.iterdir() if p.is_file())


def test_pinned_checkpoints_survive_pruning(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", checkpoints=[10, 20, 30])
    with pytest.raises(ConfigError, match=r"no checkpoint of step 15(.|\n)*one of 10, 20, 30"):
        pin_checkpoints(run, [10, 15])
    assert describe_run(run).pinned == ()
    pin_checkpoints(run, [10, 20])
    pin_checkpoints(run, [10], [20])
    assert describe_run(run).pinned == (10,)
    state.prune(run, 1, ())
    assert describe_run(run).checkpoints == (10, 30)
    assert PINNED == state.PINNED
    with pytest.raises(ConfigError, match="a run that has a checkpoint"):
        pin_checkpoints(make_run(tmp_path / "new"), [1])
    with pytest.raises(SourceError, match="this is no run"):
        pin_checkpoints(tmp_path, [1])


def test_lineage_goes_back_to_the_first_ancestor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [{"name": "model.npz", "bytes": 3, "sha256": "0123456789abcdef"}]
    first = {"mode": "init", "source": "marian", "files": files, "ancestor": None}
    second = {"mode": "transfer", "source": "scratch", "files": [], "ancestor": {"step": 1500, "starts": []}}
    make_run(Path("parent"), lineage={"step": 7, "starts": [first, second]})
    start = [{"mode": "continue", "source": "parent"}, {"mode": "init", "source": "gone"}]
    child = describe_run(make_run(Path("child"), start=start))
    assert child.starts == tuple(start)
    assert lineage_text(child) == (
        "child\n"
        "├── continue parent (step 7)\n"
        "│   ├── init marian (model.npz 0123456789ab)\n"
        "│   └── transfer scratch (step 1,500)\n"
        "│       └── from scratch\n"
        "└── init gone\n"
    )
    assert lineage_text(describe_run(make_run(Path("alone")))) == "alone\n└── from scratch\n"


def test_the_table_fits_and_loses_nothing(tmp_path: Path) -> None:
    long = "a-run-whose-name-is-quite-long-since-it-tells-every-single-parameter-of-the-experiment"
    start = [{"mode": "transfer", "source": "somewhere/else/" + long}]
    losses = [(1_000_000, 0.123456)]
    a = make_run(tmp_path / "x" / long, checkpoints=[1_000_000], losses=losses, start=start, steps=2_000_000)
    runs = [describe_run(a), describe_run(make_run(tmp_path / "x/b"))]
    for width in (80, 100, 140):
        lines = runs_table(runs, width=width).splitlines()
        assert max(map(len, lines[2:])) <= width
        assert lines[0] == f"in {tmp_path}/x:"
        table = lines[2:]
        assert ("size" in table[0]) == (width > 80)
        for heading, text in (("run", long), ("start", f"transfer{long}")):
            column = slice(table[0].index(heading), table[0].index("state") if heading == "run" else None)
            folded = "".join(line[column] for line in table[1:]).replace(" ", "")
            assert text in re.sub(r"\d+bytes|now", "", folded)
        assert "1,000,000/2,000,000" in table[1]
        assert "loss 0.1235 @1,000,000" in table[1]
    assert max(map(len, runs_table(runs, width=60).splitlines()[2:])) <= 60
    later = datetime.now(UTC) + timedelta(hours=3, minutes=5)
    assert "3h ago" in runs_table(runs, width=100, now=later)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (32_654_015, "32.7 MB"), (999_900, "1 MB"), (2e15, "2e+03 TB")],
)
def test_sizes(count: float, text: str) -> None:
    assert readable_size(count) == text


def test_listing_and_drawing_need_no_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "a", losses=[(1, 2.0)])
    code = (
        "import sys; from warmstart import api; assert api.runs(sys.argv[1:2])\n"
        "api.curves(sys.argv[1:2], sys.argv[1] + '/a.csv'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
