"""The digits example with one voice, a few updates and one seed: every step of it works."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from warmstart import api
from warmstart.vocabularies.alphabet import Alphabet

pytest.importorskip("espeakng_loader")
DIGITS = Path(__file__).parent.parent / "examples/digits"
BUDGET = ["training.steps=4", "training.evaluate_every=2", "training.checkpoint_every=4", "data.batch_size=5"]


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DIGITS))
    spec = importlib.util.spec_from_file_location("prepare_digits", DIGITS / "prepare.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = {"TRAIN_VOICES": ("m1",), "VALIDATION_VOICES": ("f5",), "SPEEDS": (150,), "PITCHES": (50,)}
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_the_example_from_spoken_words_to_its_table(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "examples/digits"
    shutil.copytree(DIGITS, here, ignore=shutil.ignore_patterns("data", "runs"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--out", str(here / "data")])
    prepare.main()
    recordings = sorted((here / "data").rglob("*.wav"))
    assert len(recordings) == 2 * (10 + 10)
    assert min(file.stat().st_size for file in recordings) > 44 + 2 * 22050 * 0.2  # a fifth of a second at least
    api.train(here / "parent.yaml", BUDGET, progress=False)
    plan = api.plan(here / "transfer.yaml", BUDGET)
    assert {row.stage for row in plan.rows if row.action == "initialise"} == {"layer_6"}
    kept = next(row for row in api.plan(here / "rows.yaml", BUDGET).rows if row.target == "layer_6.weight")
    assert kept.rows is not None
    assert kept.rows[-1] == Alphabet.of(prepare.ENGLISH).blank_id  # the blank's; no letter is in both alphabets
    assert set(kept.rows[:-1]) == {-1}
    for kind in ("scratch", "transfer", "rows"):
        api.train(here / f"{kind}.yaml", [*BUDGET, f"run=examples/digits/runs/{kind}-1"], progress=False)
    found = api.evaluate(here / "runs/transfer-1", split="validation")
    assert set(found["digits"]) == {"loss", "wer", "cer"}
    said = subprocess.run([sys.executable, here / "report.py"], capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in said.splitlines()][:4] == ["CER", "scratch", "transfer", "rows"]
    assert (here / "runs/cer.png").stat().st_size > 10_000


@pytest.mark.parametrize("warm", ["transfer", "rows"])
def test_children_are_told_apart_by_their_start_alone(warm: str) -> None:
    scratch, child = (yaml.safe_load((DIGITS / f"{kind}.yaml").read_text()) for kind in ("scratch", warm))
    differing = {key for key in scratch.keys() | child.keys() if scratch.get(key) != child.get(key)}
    assert differing == {"run", "model", "start"}


def test_the_alphabet_of_the_example_spells_every_digit(prepare: ModuleType) -> None:
    alphabet = Alphabet.of(prepare.UKRAINIAN)
    assert [alphabet.decode(alphabet.encode(word)) for word in prepare.UKRAINIAN] == list(prepare.UKRAINIAN)
