"""Names become a tree; nothing is lost, and only what is alike is folded."""

from __future__ import annotations

import pytest
import sample_models
from hypothesis import given
from hypothesis import strategies as st

from warmstart.reports.text import columns, json_text, printable, wrap
from warmstart.reports.tree import parts_of, pieces, shown, walk

NAMES = st.text(alphabet="ab1._/l3é\n", max_size=12)


def drawn(names: list[str]) -> list[str]:
    """Rows of the tree of arrays that are all alike, with the number of parts that each stands for."""
    rows = walk(parts_of((name, 0, name) for name in names))
    return [f"{shown(part, depth)} {part.count}" for depth, part in rows]


def folded(shapes: sample_models.Shapes) -> list[str]:
    rows = walk(parts_of((name, shape, name) for name, shape in shapes))
    return [f"{shown(part, depth)} {part.count}" for depth, part in rows]


@given(NAMES, st.lists(st.sampled_from(["a", "ab", "b1"]), max_size=2))
def test_pieces_are_the_name(name: str, stems: list[str]) -> None:
    assert "".join(pieces(name, stems)) == name


@given(st.lists(st.tuples(NAMES, st.integers(0, 2)), max_size=30, unique_by=lambda pair: pair[0]))
def test_every_array_is_in_one_row_of_each_level(arrays: list[tuple[str, int]]) -> None:
    parts = parts_of((name, kind, (name, kind)) for name, kind in arrays)
    assert sorted(item for part in parts for item in part.items) == sorted(arrays)
    for _, part in walk(parts):
        if part.children:
            assert sorted(item for child in part.children for item in child.items) == sorted(part.items)
            assert len(part.items) % part.count == 0
        else:
            assert len({kind for _, kind in part.items}) == 1
            assert len(part.items) % part.count == 0


def test_layers_of_every_separator_fold() -> None:
    assert drawn([f"encoder.layers.{i}.w" for i in range(12)]) == ["encoder.layers.0-11.w 12"]
    assert drawn([f"encoder/layer_{i}/w" for i in range(12)]) == ["encoder/layer_0-11/w 12"]
    assert drawn([f"encoder_l{i}_self_Wq" for i in range(1, 13)]) == ["encoder_l1-12_self_Wq 12"]
    assert drawn(["a.0.w", "a.1.w", "a.3.w", "a.10.w", "a.2.w"]) == ["a.0-3,10.w 5"]
    assert drawn([f"a.{i}.w" for i in range(0, 12, 2)]) == ["a.0,2,…,10.w 6"]
    assert drawn(["a.00.w", "a.01.w"]) == ["a.00-01.w 2"]


def test_frameworks_names() -> None:
    assert folded(sample_models.huggingface())[4:8] == [
        "    layers.0-11 12",
        "      self_attn.{k_proj, v_proj, q_proj, out_proj} 4",
        "        weight 1",
        "        bias 1",
    ]
    assert folded(sample_models.tensorflow())[:6] == [
        "layer_1-3,5 4",
        "  weights 1",
        "  bias 1",
        "layer_6 1",
        "  weights 1",
        "  bias 1",
    ]
    rows = folded(sample_models.t5x())
    assert "    layers_0 1" in rows
    assert "    layers_1-11 11" in rows
    assert "    attention/{query, key, value, out}/kernel 4" in rows


def test_layers_within_layers() -> None:
    experts = [(f"l.{i}.experts.{e}.w{k}", (2,)) for i in range(4) for e in range(16) for k in (1, 2)]
    assert folded(iter(experts)) == ["l.0-3 4", "  experts.0-15 16", "    w1-2 2"]


def test_what_differs_inside_is_not_folded() -> None:
    shapes = [(f"l.{i}.w", (4, 4 + (i == 2))) for i in range(4)] + [("l.1.b", (4,))]
    assert folded(iter(shapes)) == ["l 1", "  0,3.w 2", "  1 1", "    w 1", "    b 1", "  2.w 1"]


def test_an_array_may_be_named_like_a_part() -> None:
    assert drawn(["a", "a.b", "a.c"]) == ["a 1", "a 1", "  b, c 2"]
    assert sorted(i for p in parts_of((n, 0, n) for n in ("a", "a.b", "a.", ".a", "a..b")) for i in p.items) == [
        ".a",
        "a",
        "a.",
        "a..b",
        "a.b",
    ]


def test_hundreds_of_alike_names_are_cut() -> None:
    row = drawn([f"{a}{b}" for a in "abcdefghijklmnop" for b in "abcdefghijklmnop"])[0]
    assert row.startswith("aa, ab, ")
    assert row.endswith(", …, pp 256")


def test_deep_and_long_names_are_no_trouble() -> None:
    assert len(list(walk(parts_of([("/" * 50_000 + "a/" * 50_000, 0, 0)])))) == 1
    assert parts_of([(f"a.{'9' * 5000}", 0, 0), (f"a.{'8' * 5000}", 0, 1)])


@pytest.mark.parametrize("text", ["\x1b[31m", "\x07", "\x9b1m", "\u202e", "\u2028", "\ud800", "\r", "\x7f", "\u200f"])
def test_nothing_that_steers_a_terminal_is_printed(text: str) -> None:
    for shape in (printable(f"a{text}b"), json_text({text: [text]})):
        assert shape.isprintable() or shape.replace("\n", "").isprintable()
        assert text not in shape


def test_json_takes_what_files_say() -> None:
    import json

    assert json.loads(json_text({1: float("nan"), "x": (2**20000, b"\xff", "\x1b\x9b")})) == {
        "1": "nan",
        "x": [hex(2**20000), "b'\\xff'", "\x1b\x9b"],
    }
    bomb: list[object] = ["x"]
    for _ in range(60):
        bomb = [bomb, bomb]
    with pytest.raises(Exception, match="too large to print"):
        json_text(bomb)
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(Exception, match="too large to print"):
        json_text(loop)


@given(st.text(alphabet="ab ._/很", max_size=60), st.integers(8, 40), st.integers(0, 4))
def test_wrapping_keeps_everything_and_the_width(text: str, width: int, hang: int) -> None:
    lines = wrap(text, width, hang=hang)
    assert all(columns(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())
