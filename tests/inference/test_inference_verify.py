"""Two models are run on the same inputs; what is damaged is found."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from marian_models import OPTIONS, arrays, write
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.cli.verbs import app
from warmstart.errors import ConfigError, DataError, DialectError, VerificationError, VocabularyError
from warmstart.formats.checkpoint import Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.model_bin import read_header, write_ctranslate2
from warmstart.inference.tolerance import Judge
from warmstart.inference.verify import Inputs, compare_sides, verify_models

pytest.importorskip("ctranslate2")


@pytest.fixture
def marian(fixtures):
    return fixtures / "fixtures" / "marian-ar-en-translit"


def damaged(source, destination, change):
    """The exported model with ``change(arrays)`` applied."""
    shutil.copytree(source, destination)
    checkpoint, header = open_checkpoint(source), read_header(source / "model.bin")
    contents = {n: np.array(checkpoint.read(n)) for n in header.variables}
    change(contents)
    entries = [Entry(n, a.shape, a.dtype.name) for n, a in contents.items()]
    write_ctranslate2(
        destination / "model.bin", header.specification, header.revision, entries, contents.values(), header.aliases
    )
    return destination


def test_a_model_that_the_engine_does_not_survive_is_not_translated_with(tmp_path):
    folder = write(tmp_path / "m", OPTIONS, arrays(OPTIONS))
    api.convert(folder, tmp_path / "ct2", "ctranslate2")

    def no_heads(contents):
        contents["encoder/num_heads"] = contents["decoder/num_heads"] = np.zeros((), np.int16)

    broken = damaged(tmp_path / "ct2", tmp_path / "broken", no_heads)
    with pytest.raises(DialectError, match="num_heads is not valid\n  expected: more than 0\n  found: 0"):
        list(api.translate([broken], ["a"]))


@pytest.mark.parametrize("kind", ["given", "random"])
def test_float32_gives_the_same_outputs(kind, marian, tmp_path):
    api.convert(marian, tmp_path / "ct2", "ctranslate2")
    facts = api.verify(marian, tmp_path / "ct2", inputs=marian / "test.ar" if kind == "given" else None)
    assert facts["same"]
    assert facts["outputs_that_differ"] == 0
    assert facts["inputs"] == (1590 if kind == "given" else 100)
    assert facts["largest"] < 5e-5
    assert facts["engines"] == ["warmstart", "ctranslate2"]


def test_int8_is_reported(marian, tmp_path):
    api.convert(marian, tmp_path / "ct2", "ctranslate2", quantize="int8")
    facts = api.verify(marian, tmp_path / "ct2", inputs=marian / "test.ar")
    assert facts["same"]
    assert facts["unexplained"] == 0
    assert 0 < facts["outputs_that_differ"] < 100
    assert 1e-3 < facts["largest"] < 0.75
    assert facts["quantizations"] == ["float32", "int8"]
    strict = api.verify(marian, tmp_path / "ct2", tolerance=1e-3)
    assert not strict["same"]
    assert strict["tolerance_from"] == "given"


def swap(contents):
    """The decoder's first two layers exchange what their attention asks the source."""
    names = [f"decoder/layer_{k}/attention/linear_0/weight" for k in (0, 1)]
    contents[names[0]], contents[names[1]] = contents[names[1]], contents[names[0]]
    if contents[names[0]].dtype == np.int8:
        scales = [f"{name}_scale" for name in names]
        contents[scales[0]], contents[scales[1]] = contents[scales[1]], contents[scales[0]]


def transpose(contents):
    name = "encoder/layer_1/self_attention/linear_1/weight"
    contents[name] = np.ascontiguousarray(contents[name].T)


def one_row(contents):
    """Two tokens of the output change places."""
    name = "decoder/projection/bias"
    contents[name][[7, 8]] = contents[name][[8, 7]]


@pytest.mark.parametrize(
    ("change", "quantize"),
    [(swap, "none"), (swap, "int8"), (transpose, "none"), (transpose, "int8"), (one_row, "none")],
)
def test_a_damaged_export_is_found(change, quantize, marian, tmp_path):
    api.convert(marian, tmp_path / "ct2", "ctranslate2", quantize=quantize)
    assert api.verify(marian, tmp_path / "ct2")["same"]
    facts = api.verify(marian, damaged(tmp_path / "ct2", tmp_path / "damaged", change))
    assert not facts["same"]
    assert facts["largest"] > facts["tolerance"] or facts["mean"] > facts["mean_tolerance"]


def test_a_rule_that_swaps_is_caught_before_anything_is_written(marian, tmp_path, monkeypatch):
    """``convert --verify``: the old output stays."""
    from warmstart.export import convert

    (tmp_path / "ct2").mkdir()
    (tmp_path / "ct2" / "old").write_text("old")
    facts = api.convert(marian, tmp_path / "good", "ctranslate2", verify=True)
    assert facts["verification"]["same"]
    assert facts["verification"]["b"] == str(tmp_path / "good")
    planned = convert.plan_conversion

    def wrong(*args, **kwargs):
        conversion = planned(*args, **kwargs)
        rows = {row.name: row for row in conversion.rows}
        a, b = (f"decoder/layer_{k}/attention/linear_0/weight" for k in (0, 1))
        rows[a], rows[b] = replace(rows[b], name=a), replace(rows[a], name=b)
        return replace(conversion, rows=tuple(rows.values()))

    monkeypatch.setattr(convert, "plan_conversion", wrong)
    with pytest.raises(VerificationError, match="does not give the answers") as caught:
        api.convert(marian, tmp_path / "ct2", "ctranslate2", verify=True, force=True)
    assert caught.value.where == str(tmp_path / "ct2")
    assert [f.name for f in (tmp_path / "ct2").iterdir()] == ["old"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ct2", "good"]


def test_every_dialect_that_is_computed(marian, tmp_path, fixtures):
    api.convert(marian, tmp_path / "bundle", "warmstart", verify=True)
    api.convert(tmp_path / "bundle", tmp_path / "ct2", "ctranslate2", verify=True, inputs=marian / "test.ar")
    api.convert(tmp_path / "ct2", tmp_path / "again", "marian", verify=True)
    old = fixtures / "fixtures/ctranslate2-aren/aren-transliteration"
    api.convert(old, tmp_path / "new", "ctranslate2", verify=True)  # engine beside engine
    with pytest.raises(VocabularyError, match="different source vocabularies"):
        api.verify(marian, tmp_path / "new")


def test_lines_that_are_longer_than_the_positions_are_named(marian, tmp_path):
    api.convert(marian, tmp_path / "ct2", "ctranslate2")
    word = (marian / "test.ar").read_text("utf-8").split()[0]
    (tmp_path / "lines").write_text(
        "\n".join([word, "", " ".join([word] * 2046), word, " ".join([word] * 3000)]) + "\n"
    )
    with pytest.raises(ConfigError, match="longer than the models have positions") as error:
        api.verify(marian, tmp_path / "ct2", inputs=tmp_path / "lines")
    assert error.value.expected == "at most 2045 tokens"
    assert error.value.found == "2046 in line 3, 3000 in line 5"
    (tmp_path / "lines").write_text(" ".join([word] * 2045) + "\n")
    assert api.verify(marian, tmp_path / "ct2", inputs=tmp_path / "lines")["same"]


def test_lines_are_read_before_anything_is_converted(marian, tmp_path, monkeypatch):
    monkeypatch.setattr("warmstart.export.convert.convert_model", lambda *_, **__: pytest.fail("converted"))
    (tmp_path / "lines").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="a line is not UTF-8"):
        api.convert(marian, tmp_path / "ct2", "ctranslate2", verify=True, inputs=tmp_path / "lines")


def test_random_inputs_depend_on_the_seed_alone(tmp_path):
    folder = write(tmp_path / "m", OPTIONS, arrays(OPTIONS))
    api.convert(folder, tmp_path / "ct2", "ctranslate2")
    runs = [api.verify(folder, tmp_path / "ct2", seed=seed, count=5) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0]["scored_tokens"] != runs[2]["scored_tokens"]


class Fixed:
    """A side that says what it is told: outputs, and a log-probability for each token."""

    engine, quantization, text, tokens = "fixed", "float32", None, ("abcdef", "abcdef")

    def __init__(self, output, table):
        self.output, self.table = output, table

    def greedy(self, sources):
        return [self.output for _ in sources]

    def log_probs(self, sources, targets):
        return [[*(self.table[t] for t in target), -1.0] for target in targets]


def test_a_tie_is_no_difference_and_what_is_none_is_one():
    table = [-0.5, -0.5004, -2.0, -3.0, -3.0, -3.0]
    tie = compare_sides(Fixed((0, 2), table), Fixed((1, 3), table), Inputs([(0,)]), Judge(1e-3))
    assert tie["same"]
    assert tie["outputs_that_differ"] == 1
    assert tie["examples"][0]["gap"] == pytest.approx(4e-4)
    other = compare_sides(Fixed((0, 2), table), Fixed((3,), table), Inputs([(0,)]), Judge(1e-3))
    assert not other["same"]
    assert other["unexplained"] == 1
    shorter = compare_sides(Fixed((0,), table), Fixed((), table), Inputs([(0,)]), Judge(1e-3))
    assert shorter["examples"][0]["gap"] == pytest.approx(0.5)
    lost = compare_sides(Fixed((0,), table), Fixed((0,), [float("nan")] * 6), Inputs([(0,)]), Judge(1e9))
    assert not lost["same"]
    assert lost["largest"] == float("inf")


def test_what_cannot_be_computed_says_so(tmp_path, marian):
    (tmp_path / "whisper").mkdir()
    write_ctranslate2(tmp_path / "whisper/model.bin", "OtherSpec", 3, [Entry("a", (1,), "float32")], [np.zeros(1, "f")])
    with pytest.raises(DialectError, match="nobody here computes"):
        verify_models(open_model(tmp_path / "whisper"), open_model(tmp_path / "whisper"))
    with pytest.raises(ConfigError, match="verification"):
        api.convert(marian, tmp_path / "x", "ctranslate2", inputs=marian / "test.ar")


def test_the_command_line(marian, tmp_path):
    runner, ct2 = CliRunner(), tmp_path / "ct2"
    done = runner.invoke(app, ["convert", str(marian), str(ct2), "--to", "ctranslate2", "--verify"])
    assert done.exit_code == 0
    assert "the same answers: 100 inputs (random)" in done.output
    done = runner.invoke(app, ["verify", str(marian), str(ct2), "--count", "10", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["inputs"] == 10
    done = runner.invoke(app, ["verify", str(marian), str(damaged(ct2, tmp_path / "damaged", swap))])
    assert done.exit_code == 1
    assert "NOT the same answers" in done.output
    assert "where they part" in done.output
    done = runner.invoke(app, ["verify", str(marian), str(tmp_path / "nothing")])
    assert done.exit_code == 2
