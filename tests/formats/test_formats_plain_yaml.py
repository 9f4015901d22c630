"""What is read without a parser of YAML is what one reads."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from warmstart.formats.plain_yaml import parse

MARIAN = """dim-emb: 512
dim-vocabs:
  - 58101
  - 58101
enc-depth: 6
tied-embeddings-all: true
transformer-preprocess: ""
transformer-postprocess-emb: d
version: v1.9.0 2020-11-19
"""
SCALARS = [
    "512",
    "-3",
    "0",
    "00",
    "012",
    "0x1f",
    "1e-06",
    "1_000",
    "1:30",
    "true",
    "True",
    "yes",
    "No",
    "null",
    "~",
    '""',
    "''",
    "dan",
    "v1.9.0 d1c2",
    "a: b",
    "a #b",
    "a# b",
    "- a",
    "[1]",
    "{a: 1}",
    "'x'",
    '"x"',
    "&a",
    "*a",
    "!x",
    "|",
    ">",
    "%x",
    "@x",
    "`x",
    " a",
    "a ",
    "2020-11-19",
    ".5",
    ".inf",
    "+1",
    "a\tb",
    "a\rb",
    "ä",
    "model.npz",
    "../x/y.yml",
    "y",
    "OFF",
    "-",
    "?",
    "=",
    "<<",
    "1" * 30,
]
KEYS = ["a", "dim-emb", "no", "y", "a.b", "null", "1", "a b", '"q"', "é", "True", "b"]
lines = st.one_of(
    st.builds("{}: {}".format, st.sampled_from(KEYS), st.sampled_from(SCALARS)),
    st.builds("{}:".format, st.sampled_from(KEYS)),
    st.builds("{}- {}".format, st.sampled_from(["", "  ", "    "]), st.sampled_from(SCALARS)),
    st.sampled_from(["", "# x", "---", "...", "a", "  b: 1", "\t"]),
)


def same(a, b):
    return type(a) is type(b) and a == b if not isinstance(a, list) else [*map(type, a)] == [*map(type, b)] and a == b


@given(st.lists(lines, min_size=1, max_size=6).map("\n".join), st.sampled_from(["", "\n"]))
def test_as_yaml(text, end):
    ours = parse(text + end)
    if ours is not None:
        theirs = yaml.safe_load(text + end)
        assert list(ours) == list(theirs)
        assert all(same(value, theirs[key]) for key, value in ours.items())


def test_marian_s_own():
    assert parse(MARIAN) == yaml.safe_load(MARIAN)
    assert parse(yaml.safe_dump(yaml.safe_load(MARIAN))) == yaml.safe_load(MARIAN)


@pytest.mark.parametrize("text", ["", "a", "a: 1\na: 2", "a:\nb: 1", "a:", "a: [1]", "a: 1.5", "no: 1", "a: yes"])
def test_what_is_left_to_a_parser(text):
    assert parse(text) is None
