"""Families and dialects are imported when it is their turn, and are what the lists say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from warmstart.models.registry import FAMILIES, find_dialect
from warmstart.models.t5.family import DIALECTS as T5
from warmstart.models.transformer.family import DIALECTS as TRANSFORMER

DECIDES = """
import sys
from warmstart.bundle.model import open_model
model = open_model(sys.argv[1])
print(model.family.name, model.dialect)
print([name for name in sys.modules if name.startswith("warmstart.models.") and ".dialects." in name])
print([name for name in ("decoder", "whisper") if f"warmstart.models.{name}.config" in sys.modules])
"""


def test_names_are_those_of_what_is_made():
    for family in FAMILIES:
        assert FAMILIES.named(family.name) is family
        for dialect in family.dialects():
            found = find_dialect(family, dialect.name)
            assert type(found) is type(dialect)
            assert found.name == dialect.name
    assert FAMILIES.named("perceptron") is None


@pytest.mark.parametrize(("dialects", "of_torch"), [(T5, 1), (TRANSFORMER, 4)])
def test_a_format_asks_those_that_are_read_from_it(dialects, of_torch):
    assert len(list(dialects.of_format("torch"))) == of_torch
    assert list(dialects.joined(dialects[:1]))[:-1] == list(dialects)
    assert len(list(dialects.joined(dialects[:1]).of_format("torch"))) == of_torch + 1


def test_opening_a_marian_model_imports_few_other_dialects(fixtures):
    source = fixtures / "fixtures/marian-ar-en-translit"
    done = subprocess.run([sys.executable, "-c", DECIDES, source], capture_output=True, text=True, check=True)
    said, imported, others = done.stdout.splitlines()
    assert said == "transformer marian"
    assert "transformer.dialects.marian" in imported
    assert not any(name in imported for name in ("ctranslate2", "eole", "fairseq", "opennmt", "t5x", "mesh"))
    assert others == "[]"
