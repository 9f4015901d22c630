"""Two checkpoints are compared array by array, in canonical names where both dialects are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from warmstart import api
from warmstart.errors import ConfigError, SourceError
from warmstart.formats.checkpoint import Array, Checkpoint, Entry, SlotEntry
from warmstart.formats.safetensors import write_safetensors
from warmstart.reports.diff import diff_text


def save(path: str, **arrays: Array) -> None:
    entries = [Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()]
    write_safetensors(Path(path), entries, arrays.values())


def verdicts(facts: dict[str, Any], of: str = "entries") -> dict[str, str]:
    return {e["name"]: e["verdict"] for e in facts[of]}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_way_to_differ() -> None:
    chance = np.random.default_rng(0)
    x = chance.standard_normal((4, 3)).astype(np.float32)
    save("a", same=x, nan=x * np.nan, shape=x, dtype=x * 0 + 2, values=x, gone=x, both=x)
    half = (x * 0 + 2).astype(ml_dtypes.bfloat16)
    save("b", same=x, nan=x * np.nan, shape=x.T, dtype=half, values=x + 1, new=x, both=(x + 1).astype(np.float64))
    facts = api.diff("a", "b")
    assert not facts["same"]
    assert verdicts(facts) == {
        "same": "equal",
        "nan": "equal",
        "shape": "shape",
        "dtype": "dtype",
        "values": "values",
        "gone": "only in A",
        "both": "values",
        "new": "only in B",
    }
    values = next(e for e in facts["entries"] if e["name"] == "values")
    y = (x + 1).astype(np.float64)
    assert values["absolute"] == np.max(np.abs(x - y))
    assert values["relative"] == pytest.approx(np.max(np.abs(x - y) / np.maximum(abs(x), abs(y))))
    assert values["cosine"] == pytest.approx(np.vdot(x, y) / np.linalg.norm(x.astype(float)) / np.linalg.norm(y))
    assert (values["different"], values["shape"], values["dtype"]) == (12, [[4, 3], [4, 3]], ["float32", "float32"])
    other = next(e for e in facts["entries"] if e["name"] == "new")
    assert (other["shape"], other["dtype"]) == ([None, [4, 3]], [None, "float32"])
    assert {e["name"] for e in api.diff("a", "b", names=["*a*e?", "n*"])["entries"]} == {"values", "nan", "new"}
    assert api.diff("a", "b", names=["same", "nan"])["same"]
    with pytest.raises(ConfigError, match="'nothing' matches nothing"):
        api.diff("a", "b", names=["nothing", "same"])


def test_a_tolerance_lets_casts_pass() -> None:
    x = np.linspace(0.5, 2, 100, dtype=np.float32)
    save("a", x=x)
    save("b", x=x.astype(ml_dtypes.bfloat16))
    assert verdicts(api.diff("a", "b")) == {"x": "values"}
    assert verdicts(api.diff("a", "b", relative=2**-8)) == {"x": "close"}
    assert api.diff("a", "b", relative=2**-8)["same"]
    assert not api.diff("a", "b", relative=2**-12)["same"]
    assert api.diff("a", "b", tolerance=2**-7)["same"]
    with pytest.raises(ConfigError, match="a tolerance is a number from 0"):
        api.diff("a", "b", tolerance=-1)
    with pytest.raises(SourceError):
        api.diff("a", "nowhere")


def test_across_formats_in_canonical_names(fixtures: Path) -> None:
    """A Marian model and the bundle made of it: other names, transposed weights, one row for a bias."""
    marian = f"{fixtures}/fixtures/marian-en-ru-names@last"
    api.convert(marian, "bundle", "warmstart")
    facts = api.diff(marian, "bundle")
    assert facts["same"]
    assert facts["family"] == "transformer"
    assert set(verdicts(facts).values()) == {"equal"}
    assert len(facts["entries"]) == 88
    assert "encoder.layers.1.ffn.up.weight" in verdicts(facts)
    assert facts["only"] == [{"kind": "step", "in": "A"}, {"kind": "optimizer", "in": "A"}]
    assert facts["beyond"] == {}


def test_one_weight_of_a_bundle_differs(fixtures: Path) -> None:
    marian = f"{fixtures}/fixtures/marian-en-ru-names@last"
    api.convert(marian, "bundle", "warmstart")
    weights = Path("bundle/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 0x80  # the sign of the last array's last element
    weights.write_bytes(data)
    facts = api.diff(marian, "bundle")
    wrong = [e for e in facts["entries"] if e["verdict"] != "equal"]
    assert [e["verdict"] for e in wrong] == ["values"]
    assert wrong[0]["different"] == 1


class Memory(Checkpoint):
    """A checkpoint with optimizer state, in memory."""

    def __init__(self, step: int, m: Array, **optimizer: Any) -> None:
        x = np.ones((3, 2), np.float32)
        super().__init__(Path("memory"), "memory", {"x": Entry("x", x.shape, "float32")}, step=step)
        self.slots = {("x", "m"): SlotEntry("x", "m", m.shape, m.dtype.name)}
        self.optimizer, self._x, self._m = optimizer, x, m

    def read(self, name: str) -> Array:
        return self._x

    def read_slot(self, parameter: str, slot: str) -> Array:
        return self._m


def test_slots_step_and_scalars_count_where_both_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros, ones = np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32)
    there = {"a": Memory(5, zeros, beta=0.9), "b": Memory(6, ones, beta=0.8), "c": Memory(5, zeros, beta=0.9)}
    save("none", x=ones)
    monkeypatch.setattr("warmstart.bundle.model.arrive", lambda source: (Path(source), None))
    from warmstart.formats.detect import open_checkpoint

    monkeypatch.setattr("warmstart.bundle.model.open_checkpoint", lambda s, _: there.get(str(s)) or open_checkpoint(s))
    facts = api.diff("a", "b")
    assert (facts["same"], verdicts(facts), verdicts(facts, "slots")) == (False, {"x": "equal"}, {"x": "values"})
    assert facts["beyond"] == {"step": {"step": [5, 6]}, "optimizer": {"beta": [0.9, 0.8]}}
    assert api.diff("a", "b", weights_only=True)["same"]
    assert api.diff("a", "c")["same"]
    facts = api.diff("none", "b")
    assert (facts["same"], facts["slots"]) == (True, [])
    assert facts["only"] == [{"kind": "step", "in": "B"}, {"kind": "optimizer", "in": "B"}]


def test_of_nested_values_what_differs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    names, zeros = [f"layers.{k}.weight" for k in range(30)], np.zeros((3, 2), np.float32)

    def group(**more: Any) -> list[dict[str, Any]]:
        return [{"params": names, "lr": 0.1, "betas": [0.9, 0.999], "nan": math.nan, **more}]

    there = {"a": Memory(5, zeros, groups=group()), "b": Memory(5, zeros, groups=group(lr=0.12345678, eps=1e-9))}
    monkeypatch.setattr("warmstart.bundle.model.arrive", lambda source: (Path(source), None))
    monkeypatch.setattr("warmstart.bundle.model.open_checkpoint", lambda s, _: there[str(s)])
    facts = api.diff("a", "b")
    assert facts["beyond"] == {"optimizer": {"groups.0.lr": [0.1, 0.12345678], "groups.0.eps": [None, 1e-9]}}
    lines = diff_text(facts).splitlines()
    assert "optimizer      groups.0.lr: 0.1 in A, 0.12345678 in B" in lines
    there["b"] = Memory(5, zeros, groups=group(params=names[:-1]))
    assert "groups.0.params: 30 values in A, 29 values in B" in diff_text(api.diff("a", "b"))


def test_packed_arrays_are_not_called_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Memory(5, np.zeros((3, 2), np.float32))
    one.entries = {"x": Entry("x", (3, 2), "intgemm8", 10)}
    monkeypatch.setattr("warmstart.bundle.model.arrive", lambda source: (Path(source), None))
    monkeypatch.setattr("warmstart.bundle.model.open_checkpoint", lambda *_: one)
    facts = api.diff("a", "b")
    assert (facts["same"], verdicts(facts)) == (False, {"x": "not read"})
