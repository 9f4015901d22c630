"""``conversion.json``: what was read, what was asked, and where the source itself came from."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

import decoder_models
from marian_models import OPTIONS, arrays, write
from warmstart import api
from warmstart.errors import SourceError
from warmstart.formats.writers import writer_for


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "opus", OPTIONS, arrays(OPTIONS), opus=True)


def record(directory: Path) -> dict:
    return json.loads((directory / "conversion.json").read_text("utf-8"))


def test_every_file_that_was_read_is_there_with_its_digest(folder, tmp_path):
    for name, given in (("found", ()), ("given", [str(f) for f in sorted(folder.glob("vocab*.yml"))])):
        api.convert(folder, tmp_path / name, "ctranslate2", vocabularies=given)
        files = {file["name"]: file["sha256"] for file in record(tmp_path / name)["source"]["files"]}
        assert set(files) == {f.name for f in folder.iterdir()}
        assert all(digest == sha256((folder / f).read_bytes()).hexdigest() for f, digest in files.items())


def test_names_that_are_no_utf8(folder, tmp_path):
    source, out, back = (tmp_path / os.fsdecode(name) for name in (b"\xffin", b"\xffout", b"\xffback"))
    folder.rename(source)
    api.convert(source, out, "ctranslate2")
    api.convert(out, back, "warmstart")
    assert record(out)["source"]["name"] == source.name
    assert record(back)["source"]["name"] == out.name


def test_what_was_asked(folder, tmp_path):
    (tmp_path / "map").write_text("a\tb\n")
    api.convert(folder, tmp_path / "out", "ctranslate2", from_="marian", quantize="int8", vmap=tmp_path / "map",
                copy_files=["decoder.yml"])  # fmt: skip
    assert record(tmp_path / "out")["options"] == {
        "from": "marian", "quantization": "int8", "strict": True, "requantize": False,
        "files": ["decoder.yml", "vmap.txt"],
    }  # fmt: skip


def test_activations_are_a_source_too(tmp_path):
    model = decoder_models.write(tmp_path / "opt", "opt")
    scales = tmp_path / "scales.safetensors"
    from warmstart.formats.checkpoint import Entry

    values = decoder_models.activation_scales(model)
    writer_for(scales).write(scales, [Entry(n, a.shape, a.dtype.name) for n, a in values.items()], values.values())
    facts = api.convert(model, tmp_path / "out", "ctranslate2", activation_scales=scales)
    found = record(tmp_path / "out")
    assert found["remarks"] == facts["remarks"] == ["smoothed by the activations in scales.safetensors"]
    assert "scales.safetensors" in [file["name"] for file in found["source"]["files"]]


def test_the_first_ancestor_is_kept_on_every_way(folder, tmp_path):
    """opus → ct2 → bundle → ct2, and ct2 → marian: each names all that were before."""
    first = [{"name": "model.npz"}, {"name": "decoder.yml"}]
    api.convert(folder, tmp_path / "a", "ctranslate2", quantize="int8")
    api.convert(tmp_path / "a", tmp_path / "b", "warmstart")
    api.convert(tmp_path / "b", tmp_path / "c", "ctranslate2")
    lineage = json.loads((tmp_path / "c/warmstart.json").read_text())["lineage"]
    names = []
    while lineage:
        names.append(lineage["converted_from"]["source"])
        last, lineage = lineage, lineage["ancestor"]
    assert names == [str(tmp_path / "b").rpartition("/")[2], "a", "opus"]
    assert [{"name": file["name"]} for file in last["converted_from"]["files"]][:2] == first
    api.convert(tmp_path / "a", tmp_path / "d", "marian")
    assert record(tmp_path / "d")["source"]["lineage"]["converted_from"]["source"] == "opus"


def test_files_that_are_not_there_are_all_named(folder, tmp_path):
    with pytest.raises(SourceError, match="no such file to put beside the model") as caught:
        api.convert(folder, tmp_path / "out", "ctranslate2", copy_files=["a.spm", "decoder.yml"], vmap="no-map")
    assert caught.value.where == f"{folder / 'a.spm'}, no-map"
    assert not (tmp_path / "out").exists()
