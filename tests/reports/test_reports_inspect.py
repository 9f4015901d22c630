"""What `inspect` prints of 12 + 12 layers is kept in tests/golden/reports, to be looked at in a review.

``WARMSTART_WRITE_GOLDEN=1`` writes the files again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sample_models

from warmstart import api
from warmstart.formats.checkpoint import Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.reports.inspect import inspect_text
from warmstart.reports.text import columns

GOLDEN = Path(__file__).parents[1] / "golden" / "reports"


def check(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("WARMSTART_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("kind", ["huggingface", "t5x", "tensorflow", "marian"])
def test_a_model_as_a_tree(kind: str, width: int) -> None:
    if kind == "marian":
        sample_models.write_marian_model(Path("model"))
    else:
        sample_models.write(Path("model"), getattr(sample_models, kind)(), format="pt")
    text = inspect_text(api.inspect("model"), width=width)
    assert all(columns(line) <= width for line in text.splitlines())
    check(f"inspect-{kind}-{width}.txt", text)
    coloured = inspect_text(api.inspect("model"), width=width, colour=True)
    assert "\x1b[1m" in coloured
    assert coloured.replace("\x1b[0m", "").replace("\x1b[1m", "").replace("\x1b[2m", "").replace(" ", "") == (
        text.replace(" ", "")
    )


def test_statistics_of_parts_are_those_of_all_their_arrays() -> None:
    arrays = sample_models.write(Path("model"), sample_models.huggingface())
    arrays["model.encoder.layers.3.fc1.weight"][0, :2] = np.nan
    arrays["model.encoder.layers.3.fc1.weight"][1, 0] = -np.inf
    arrays["lm_head.weight"] = arrays["model.shared.weight"]
    sample_models.save(Path("model"), arrays)
    facts = api.inspect("model", stats=True)
    check("inspect-stats-80.txt", inspect_text(facts, width=80))
    found = {e["name"]: e["stats"] for e in facts["entries"]}
    assert found["model.encoder.layers.3.fc1.weight"]["nan"] == 2
    assert found["model.encoder.layers.3.fc1.weight"]["inf"] == 1
    assert facts["tied"] == [{"by": "values", "names": ["model.shared.weight", "lm_head.weight"]}]
    row = next(line for line in inspect_text(facts, width=200).splitlines() if line.startswith("lm_head.weight"))
    values = arrays["lm_head.weight"]
    assert row.split()[1:5] == [f"{f(values):.3g}" for f in (np.min, np.max, np.mean, np.std)]


def test_some_names_are_listed_with_their_slots(fixtures: Path) -> None:
    source = fixtures / "fixtures" / "marian-en-ru-names" / "model.npz"
    facts = api.inspect(source, names=["*_l2_*_Wq", "encoder_Wemb"])
    assert [e["name"] for e in facts["entries"]] == [
        "decoder_l2_context_Wq",
        "decoder_l2_self_Wq",
        "encoder_Wemb",
        "encoder_l2_self_Wq",
    ]
    assert {(s["name"], s["slot"]) for s in facts["slots"]} == {
        (e["name"], slot) for e in facts["entries"] for slot in "mv"
    }
    lines = inspect_text(facts, width=80).splitlines()
    start = lines.index("4 of 88 arrays match *_l2_*_Wq or encoder_Wemb")
    assert [line.split() for line in lines[start + 1 : start + 5]] == [
        ["array", "shape", "dtype", "size"],
        ["decoder_l2_context_Wq", "96×96", "float32", "36.9", "kB"],
        ["m", "96×96", "float32", "36.9", "kB"],
        ["v", "96×96", "float32", "36.9", "kB"],
    ]


def test_a_dialects_tie_is_said(fixtures: Path) -> None:
    facts = api.inspect(fixtures / "fixtures" / "marian-en-de-spm")
    names = ["encoder.embedding.weight", "decoder.embedding.weight", "decoder.output.weight"]
    assert facts["tied"] == [{"by": "dialect", "names": names, "array": "Wemb"}]
    assert f"tied           {names[0]} = {names[1]} =" in inspect_text(facts)


def test_arrays_that_share_bytes_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = sample_models.write(Path("model"), sample_models.huggingface(1))
    checkpoint = open_checkpoint("model")
    checkpoint.ties = {"lm_head.weight": "model.shared.weight"}
    monkeypatch.setattr("warmstart.bundle.model.open_checkpoint", lambda *_: checkpoint)
    text = inspect_text(api.inspect("model"))
    elements = sum(a.size for a in arrays.values()) - arrays["lm_head.weight"].size
    assert f"parameters     {elements:,} in {len(arrays)} arrays" in text
    assert "model.shared.weight = lm_head.weight (same bytes in the file)" in " ".join(text.split())


def test_packed_types_are_described_and_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    sample_models.write(Path("model"), sample_models.huggingface(1))
    checkpoint = open_checkpoint("model")
    checkpoint.entries = {**checkpoint.entries, "packed": Entry("packed", (4, 4), "intgemm8", 24)}
    monkeypatch.setattr("warmstart.bundle.model.open_checkpoint", lambda *_: checkpoint)
    facts = api.inspect("model", stats=True)
    assert "stats" not in facts["entries"][-1]
    assert "intgemm8 in 1 (24 bytes)" in inspect_text(facts)


def test_a_file_cannot_steer_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\x9b31m\u202egnp"
    sample_models.save(Path("model"), {f"a{evil}.w": np.ones(3), "b": np.ones(3)}, **{evil: evil * 20, "ok": "yes"})
    for facts in (api.inspect("model"), api.inspect("model", names=["a*"]), api.inspect("model", stats=True)):
        text = inspect_text(facts)
        assert text.replace("\n", "").isprintable()
        assert "\\x1b]0;owned" in text


def test_what_a_family_cannot_take_is_a_note() -> None:
    sample_models.write_marian_model(Path("model.npz"), layers=1)
    Path("model.npz.decoder.yml").write_text("vocabs: [gone.yml, gone.yml]\n")
    facts = api.inspect("model.npz")
    assert (facts["family"], facts["dialect"], facts["config"]["d_model"]) == ("transformer", "marian", sample_models.D)
    assert (facts["vocabularies"], len(facts["entries"])) == ({}, 45)
    assert "gone.yml" in inspect_text(facts)


def test_nothing_heavy_is_imported() -> None:
    sample_models.write_marian_model(Path("model.npz"), layers=1)
    sample_models.write(Path("model.safetensors"), sample_models.huggingface(1))
    code = """
import sys
from warmstart.cli.verbs import app
app(sys.argv[1:], standalone_mode=False)
print(sorted({"torch", "transformers", "rich"} & set(sys.modules)))
"""
    for verb in (["inspect", "model.npz"], ["inspect", "model.safetensors", "--stats"]):
        done = subprocess.run([sys.executable, "-c", code, *verb], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"
