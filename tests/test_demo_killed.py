"""The names demo with a smaller budget, killed once on purpose, ends with the same table."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pycountry")
ROOT = Path(__file__).parent.parent
NAMES = ROOT / "examples/names"
SMALL = ["model.d_model=32", "model.d_ff=64", "model.encoder_layers=1", "model.decoder_layers=1"]
BUDGET = [
    *("training.steps=12", "training.evaluate_every=6", "training.checkpoint_every=4", "training.log_every=4"),
    *("training.schedule.warmup=4", "data.batch_tokens=1024"),
]


def warmstart(place: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "warmstart", *arguments]
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def test_the_demo_killed_once_ends_with_the_same_table(tmp_path: Path) -> None:
    names = tmp_path / "examples/names"
    shutil.copytree(NAMES, names, ignore=shutil.ignore_patterns("data", "runs"))
    subprocess.run([sys.executable, names / "prepare.py"], cwd=tmp_path, check=True, capture_output=True)
    for split in ("validation", "test"):  # decoding all of them is not what is tested
        for file in (names / "data").glob(f"*.{split}.tsv"):
            file.write_text("\n".join(file.read_text("utf-8").splitlines()[:40]) + "\n", "utf-8")

    def demo(runs: str, kill: str | None) -> str:
        for name in ("parent", "scratch", "transfer"):
            own = [f"run={runs}/{name}", *BUDGET]
            own += [f"start.source={runs}/parent"] if name == "transfer" else SMALL
            arguments = ["train", f"examples/names/{name}.yaml", *own]
            if name == kill:
                process = warmstart(tmp_path, *arguments)
                while not (tmp_path / runs / name / "checkpoints/step-00000004/state.json").exists():
                    assert process.poll() is None, process.communicate()[0]
                    time.sleep(0.02)
                process.kill()
                assert process.wait() == -signal.SIGKILL
            finish(warmstart(tmp_path, *arguments))
        labels = [f"{name}={runs}/{name}" for name in ("scratch", "transfer")]
        table = finish(
            warmstart(tmp_path, "compare", *labels, "--metric", "validation/chrf", "--metric", "validation/loss")
        )
        return table.split("curves:")[0]

    whole = demo("whole", None)
    assert "gain" in whole
    assert demo("cut", "parent") == whole
