"""Marian's and OPUS-MT's directories, and what of their options is refused."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from marian_models import OPTIONS, PRE, arrays, tokens, write
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.errors import (
    ConfigError,
    CorruptCheckpoint,
    DialectError,
    FormatError,
    SourceError,
    VocabularyError,
    WarmstartError,
)
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.unpacking import unpack


def test_an_opus_mt_directory_and_its_zip(tmp_path):
    options = {**OPTIONS, "tied-embeddings-all": True, "dim-vocabs": [41, 41]}
    folder = write(tmp_path / "opus", options, arrays(options), opus=True)
    (folder / "source.spm").write_bytes(b"pieces")
    with zipfile.ZipFile(tmp_path / "opus-2020.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    api.convert(folder, tmp_path / "a", "ctranslate2", copy_files=["source.spm"])
    api.convert(tmp_path / "opus-2020.zip", tmp_path / "b", "ctranslate2", from_="marian")
    assert (tmp_path / "a/model.bin").read_bytes() == (tmp_path / "b/model.bin").read_bytes()
    assert json.loads((tmp_path / "a/shared_vocabulary.json").read_text()) == tokens(41, "x")
    assert (tmp_path / "a/source.spm").read_bytes() == b"pieces"


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz in a zip"])
def test_errors_name_the_archive_and_what_is_in_it(kind, tmp_path):
    folder = write(tmp_path / "opus", OPTIONS, arrays(OPTIONS), opus=True)
    (folder / "decoder.yml").write_text("models: [")
    made, member = tmp_path / f"a.{kind[:3]}", "decoder.yml"
    if kind == "zip":
        with zipfile.ZipFile(made, "w") as archive:
            for file in folder.iterdir():
                archive.write(file, f"deeper/{file.name}")
        member = "deeper/decoder.yml"
    else:
        with tarfile.open(made, "w" if kind == "tar" else "w:gz") as tar:
            tar.add(folder, ".")
    name = str(made)
    if kind == "tgz in a zip":
        with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
            archive.write(made, "inner.tgz")
            archive.writestr("README.md", "no model")
        name = f"{tmp_path / 'outer.zip'}: inner.tgz"
        made = unpack(tmp_path / "outer.zip") / "inner.tgz"
    for _ in range(2):  # unpacked now, and before
        with pytest.raises(CorruptCheckpoint) as error:
            api.convert(made, tmp_path / "ct2", "ctranslate2")
        assert error.value.where == f"{name}: {member}"
    assert "unpacked" not in str(error.value)


def test_a_decoder_yml_of_another_model_is_said(tmp_path):
    folder = write(tmp_path / "opus", OPTIONS, arrays(OPTIONS), opus=True)
    (folder / "model.npz").rename(folder / "renamed.npz")
    for call in (
        lambda: api.convert(folder, tmp_path / "ct2", "ctranslate2"),
        lambda: list(api.translate([folder], ["a"])),
    ):
        with pytest.raises(VocabularyError) as error:
            call()
        found = "decoder.yml names model.npz, and renamed.npz lies here: its vocabularies are not taken"
        assert error.value.found == found
    given = [str(path) for path in sorted(folder.glob("vocab*.yml"))]
    assert api.convert(folder, tmp_path / "ct2", "ctranslate2", vocabularies=given)["bytes"]


def test_each_member_of_an_ensemble(tmp_path):
    folder = write(tmp_path / "opus", OPTIONS, arrays(OPTIONS), opus=True)
    other = write(tmp_path / "other", OPTIONS, arrays(OPTIONS, seed=1))
    (other / "model.npz").rename(folder / "second.npz")
    decoder = yaml.safe_load((folder / "decoder.yml").read_text())
    (folder / "decoder.yml").write_text(yaml.safe_dump({**decoder, "models": ["model.npz", "second.npz"]}))
    with pytest.raises(FormatError, match=r"several checkpoints.*@second\.npz|@model\.npz or .*@second\.npz"):
        api.convert(folder, tmp_path / "ct2", "ctranslate2")
    for member in ("model.npz", "second.npz"):
        api.convert(f"{folder}@{member}", tmp_path / member, "ctranslate2")
    contents = [(tmp_path / member / "model.bin").read_bytes() for member in ("model.npz", "second.npz")]
    assert contents[0] != contents[1]


def test_plain_and_sentencepiece_vocabularies(tmp_path, fixtures):
    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    lists = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file, count, mark in zip(lists, OPTIONS["dim-vocabs"], "st", strict=True):
        file.write_text("".join(f"{token}\n" for token in tokens(count, mark)), "utf-8")
    api.convert(folder, tmp_path / "plain", "ctranslate2", vocabularies=[*map(str, lists)])
    api.convert(folder, tmp_path / "yaml", "ctranslate2")
    for name in ("model.bin", "source_vocabulary.json", "target_vocabulary.json", "config.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "yaml" / name).read_bytes()
    api.convert(fixtures / "fixtures" / "marian-en-de-spm", tmp_path / "spm", "ctranslate2")
    table = json.loads((tmp_path / "spm/shared_vocabulary.json").read_text())
    assert (len(table), table[:2]) == (2000, ["</s>", "<unk>"])


REFUSED = {
    "type": "s2s",
    "transformer-decoder-autoreg": "rnn",
    "transformer-no-projection": True,
    "transformer-ffn-activation": "prelu",
    "transformer-ffn-depth": 3,
    "transformer-decoder-ffn-depth": 1,
    "transformer-postprocess-emb": "a",
    "transformer-tied-layers": [1, 1],
    "transformer-no-bias": True,
    "transformer-no-affine": True,
    "transformer-pool": True,
    "transformer-attention-mask": "window",
    "transformer-disable-position-embeddings": True,
    "tied-embeddings-src": True,
    "input-types": ["class"],
    "lemma-dim-emb": 2,
    "factors-dim-emb": 8,
    "right-left": True,
    "ulr": True,
    "transformer-preprocess": "d",
    "transformer-guided-alignment-layer": "first",
    "transformer-quantum-heads": 3,
}


def test_all_options_that_cannot_be_expressed_are_named_at_once(tmp_path):
    options = {**OPTIONS, **REFUSED}
    folder = write(tmp_path / "marian", options, arrays(OPTIONS))
    with pytest.raises(DialectError) as caught:
        api.convert(folder, tmp_path / "ct2", "ctranslate2")
    assert all(option in str(caught.value) for option in REFUSED)
    assert not (tmp_path / "ct2").exists()


@pytest.mark.parametrize("option", REFUSED)
def test_each_option_alone_is_refused(option, tmp_path):
    folder = write(tmp_path / "marian", {**OPTIONS, option: REFUSED[option]}, arrays(OPTIONS))
    with pytest.raises(DialectError, match=option if option != "transformer-preprocess" else "transformer-preprocess"):
        api.convert(folder, tmp_path / "ct2", "ctranslate2")


@pytest.mark.parametrize("missing", ["transformer-decoder-autoreg", "transformer-no-projection",
                                     "transformer-guided-alignment-layer", "transformer-postprocess-top"])  # fmt: skip
def test_options_that_older_versions_lack_have_marians_defaults(missing, tmp_path):
    folder = write(tmp_path / "whole", OPTIONS, arrays(OPTIONS))
    older = write(tmp_path / "older", {k: v for k, v in OPTIONS.items() if k != missing}, arrays(OPTIONS))
    for source in (folder, older):
        api.convert(source, tmp_path / f"{source.name}-ct2", "ctranslate2")
    assert (tmp_path / "whole-ct2/model.bin").read_bytes() == (tmp_path / "older-ct2/model.bin").read_bytes()


@pytest.mark.parametrize("nul", [1, 12])
def test_options_padded_by_any_number_of_zero_bytes(nul, tmp_path):
    written = []
    for name, zeros in (("one", 1), ("several", nul)):
        folder = write(tmp_path / name, OPTIONS, arrays(OPTIONS), nul=zeros)
        api.convert(folder, tmp_path / f"{name}-ct2", "ctranslate2")
        written.append((tmp_path / f"{name}-ct2" / "model.bin").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    "name",
    ["Wemb", "encoder_l1_self_Wq", "decoder_l2_context_Wk", "encoder_l2_self_Wo", "decoder_l1_ffn_W1",
     "encoder_l1_self_bq", "decoder_ff_logit_out_b", "decoder_l3_self_Wo_ln_scale_pre", "decoder_top_ln_bias"],
)  # fmt: skip
def test_a_missing_array_is_named(name, tmp_path):
    options = {**OPTIONS, **PRE, "tied-embeddings-all": True, "dim-vocabs": [41, 41]}
    contents = arrays(options)
    del contents[name]
    folder = write(tmp_path / "marian", options, contents)
    with pytest.raises(DialectError) as caught:
        api.convert(folder, tmp_path / "ct2", "ctranslate2")
    assert [problem.what for problem in caught.value.problems] == [f"{name} is missing"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"encoder_l1_ffn_W3": np.zeros((24, 24), np.float32)}, "encoder_l1_ffn_W3 would be left behind"),
        ({"encoder_l3_self_Wq": np.zeros((16, 16), np.float32)}, "encoder_l3_self_Wq would be left behind"),
        ({"encoder_l1_self_Wq": np.zeros((16, 8), np.float32)}, "encoder_l1_self_Wq has another shape"),
        ({"decoder_l1_ffn_W1": np.zeros((24, 16), np.float32)}, "decoder_l1_ffn_W1 has another shape"),
        ({"encoder_Wemb": np.zeros((36, 16), np.float32)}, "encoder_Wemb has another shape"),
        ({"decoder_l1_self_bo": np.zeros((16,), np.float32)}, "decoder_l1_self_bo has a shape that does not fit"),
    ],
)
def test_arrays_that_do_not_belong(change, match, tmp_path):
    folder = write(tmp_path / "marian", OPTIONS, {**arrays(OPTIONS), **change})
    with pytest.raises(DialectError, match=match):
        api.convert(folder, tmp_path / "ct2", "ctranslate2")
    assert not (tmp_path / "ct2").exists()


def test_what_is_left_behind_knowingly_is_listed(tmp_path):
    contents = {**arrays(OPTIONS), "mystery": np.ones(3, np.float32)}
    folder = write(tmp_path / "marian", OPTIONS, contents)
    facts = api.convert(folder, tmp_path / "ct2", "ctranslate2", strict=False)
    assert facts["ledger"]["left_behind"] == {"mystery": "no rule of the dialect speaks of it"}
    record = json.loads((tmp_path / "ct2/conversion.json").read_text())
    assert record["ledger"]["left_behind"] == facts["ledger"]["left_behind"]
    assert record["source"]["files"][0]["name"] == "model.npz"
    assert len(record["source"]["files"][0]["sha256"]) == 64


def test_heads_must_divide_the_width(tmp_path):
    folder = write(tmp_path / "marian", {**OPTIONS, "transformer-heads": 3}, arrays(OPTIONS))
    with pytest.raises(DialectError, match="not a multiple of num_heads 3"):
        api.convert(folder, tmp_path / "ct2", "ctranslate2")


def test_a_vocabulary_one_short(tmp_path):
    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    file = folder / "vocab.src.yml"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(WarmstartError, match="source vocabulary does not fit") as caught:
        api.convert(folder, tmp_path / "ct2", "ctranslate2")
    assert (caught.value.expected, caught.value.found) == ("37 tokens, one for each row", "36 tokens")


def test_three_vocabularies(tmp_path):
    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    names = [str(folder / "vocab.src.yml")] * 3
    with pytest.raises(VocabularyError, match="two vocabularies"):
        api.convert(folder, tmp_path / "ct2", "ctranslate2", vocabularies=names)


def test_files_that_travel_are_checked_first(tmp_path):
    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    with pytest.raises(SourceError, match="no such file"):
        api.convert(folder, tmp_path / "ct2", "ctranslate2", copy_files=["source.spm"])
    (folder / "config.json").write_text("{}")
    with pytest.raises(WarmstartError, match=r"config\.json is a file of the model itself"):
        api.convert(folder, tmp_path / "ct2", "ctranslate2", copy_files=["config.json"])
    for taken in (
        "warmstart.json",
        "lineage.json",
        "conversion.json",
        "vocabularies",
    ):  # of the output
        (folder / "more").mkdir(exist_ok=True)
        (folder / "more" / taken).write_text("{}")
        with pytest.raises(ConfigError, match=f"{taken} is a file of the model itself"):
            api.convert(folder, tmp_path / "ct2", "ctranslate2", copy_files=[f"more/{taken}"])
    (folder / "more/source.spm").write_text("other")
    (folder / "source.spm").write_text("one")
    with pytest.raises(ConfigError, match=r"several files would be called source\.spm"):
        api.convert(folder, tmp_path / "ct2", "ctranslate2", copy_files=["source.spm", "more/source.spm"])
    api.convert(folder, tmp_path / "twice", "ctranslate2", copy_files=["source.spm", "source.spm"])
    (folder / "vmap.txt").write_text("c\td\n")
    (folder / "map.txt").write_text("a\tb\n")
    with pytest.raises(ConfigError, match=r"several files would be called vmap\.txt"):
        api.convert(folder, tmp_path / "ct2", "ctranslate2", copy_files=["vmap.txt"], vmap=folder / "map.txt")
    assert not (tmp_path / "ct2").exists()
    api.convert(folder, tmp_path / "ct2", "ctranslate2", vmap=folder / "map.txt")
    assert (tmp_path / "ct2/vmap.txt").read_text() == "a\tb\n"


variants = st.fixed_dictionaries(
    {
        "norm": st.sampled_from([{}, PRE]),
        "tied": st.sampled_from(["none", "target", "all"]),
        "emb": st.sampled_from(["", "d", "n", "nd"]),
        "bias": st.booleans(),
        "positions": st.sampled_from([0, 7]),
        "depth": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "width": st.sampled_from([(4, 1, 3), (8, 2, 5), (6, 3, 6)]),
        "decoder_ffn": st.sampled_from([0, 4]),
        "sizes": st.tuples(st.integers(18, 22), st.integers(18, 22)),
        "activation": st.sampled_from(["relu", "swish", "gelu"]),
    }
)


@settings(max_examples=25, deadline=None)
@given(variants)
def test_every_model_returns_from_every_dialect(tmp_path_factory, v):
    """marian → bundle → ctranslate2 → marian: arrays, configuration and vocabularies as they were."""
    folder = tmp_path_factory.mktemp("round")
    d, heads, f = v["width"]
    sizes = [v["sizes"][0]] * 2 if v["tied"] == "all" else list(v["sizes"])
    options = {
        **OPTIONS, **v["norm"], "dim-vocabs": sizes, "dim-emb": d, "transformer-heads": heads,
        "transformer-dim-ffn": f, "transformer-decoder-dim-ffn": v["decoder_ffn"],
        "enc-depth": v["depth"][0], "dec-depth": v["depth"][1], "transformer-postprocess-emb": v["emb"],
        "transformer-ffn-activation": v["activation"], "output-omit-bias": not v["bias"],
        "tied-embeddings": v["tied"] == "target", "tied-embeddings-all": v["tied"] == "all",
        "transformer-train-position-embeddings": bool(v["positions"]),
    }  # fmt: skip
    contents = arrays(options, positions=v["positions"])
    source = write(folder / "marian", options, contents)
    api.convert(source, folder / "bundle", "warmstart")
    api.convert(folder / "bundle", folder / "ct2", "ctranslate2")
    api.convert(folder / "ct2", folder / "back", "marian")
    api.convert(source, folder / "direct", "ctranslate2")
    assert (folder / "ct2/model.bin").read_bytes() == (folder / "direct/model.bin").read_bytes()
    with np.load(folder / "back/model.npz") as found:
        assert set(found.files) == {*contents, "special:model.yml"}
        for name, array in contents.items():
            assert found[name].tobytes() == array.tobytes()
            assert found[name].shape == array.shape
    first, last = open_model(source), open_model(folder / "back")
    ignored = {"dropout", "attention_dropout", "ffn_dropout", "source_dropout", "target_dropout"}
    assert first.config.model_dump(exclude=ignored) == last.config.model_dump(exclude=ignored)
    for side in ("source", "target"):
        assert first.vocabularies[side].fingerprint == last.vocabularies[side].fingerprint


def test_a_bundle_keeps_the_dtype(tmp_path):
    contents = {name: array.astype(np.float16) for name, array in arrays(OPTIONS).items()}
    folder = write(tmp_path / "marian", OPTIONS, contents)
    api.convert(folder, tmp_path / "bundle", "warmstart")
    assert {e.dtype for e in open_checkpoint(tmp_path / "bundle/model.safetensors").entries.values()} == {"float16"}


def test_output_is_the_same_every_time(tmp_path):
    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    for name in ("a", "b"):
        api.convert(folder, tmp_path / name, "ctranslate2", quantize="int8_float16")
    files = [sorted(p for p in (tmp_path / n).rglob("*") if p.is_file()) for n in ("a", "b")]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
    assert len(files[0]) == 8, [Path(p).name for p in files[0]]


def test_vocabularies_of_two_sizes_are_nothing_for_transformers(tmp_path):
    """<pad>, from which the decoder starts, is one row of both tables; MarianMTModel cannot be made otherwise."""
    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS), opus=True)
    with pytest.raises(DialectError, match="MarianMTModel: both vocabularies are of one size"):
        api.convert(folder, tmp_path / "out", "transformers")


SAME = {**OPTIONS, "dim-vocabs": [41, 41]}


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("to", ["ctranslate2", "transformers", "warmstart", "marian"])
def test_integers_are_no_weights(dtype, to, tmp_path):
    """Without a scale they mean nothing; the engine would take them as they are."""
    contents = arrays(SAME)
    contents["encoder_l1_self_Wo"] = (contents["encoder_l1_self_Wo"] * 10).astype(dtype)
    folder = write(tmp_path / "marian", SAME, contents, opus=True)
    for quantize in (None, "int8") if to == "ctranslate2" else (None,):
        with pytest.raises(DialectError, match=f"encoder_l1_self_Wo holds {dtype}, which is no weight"):
            api.convert(folder, tmp_path / "out", to, quantize=quantize)


@pytest.mark.parametrize(
    ("dtype", "to", "stored", "said"),
    [
        ("float64", "ctranslate2", "float32", "float64 becomes float32: rounded"),
        ("float64", "marian", "float32", "float64 becomes float32: rounded"),
        ("float64", "warmstart", "float64", None),
        ("float64", "transformers", "float64", None),
        ("float16", "ctranslate2", "float16", None),
        ("float16", "marian", "float32", "float16 becomes float32, which is exact"),
    ],
)
def test_a_dtype_that_changes_is_in_the_ledger(dtype, to, stored, said, tmp_path):
    contents = {name: array.astype(dtype) for name, array in arrays(SAME).items()}
    folder = write(tmp_path / "marian", SAME, contents, opus=True)
    facts = api.convert(folder, tmp_path / "out", to)
    lossy = facts["ledger"]["lossy"]
    lossy.pop("layer_norm_epsilon", None)
    assert set(lossy.values()) == ({said} if said else set())
    layer = [e for n, e in open_checkpoint(tmp_path / "out").entries.items() if "ffn" in n or "fc1" in n]
    assert {entry.dtype for entry in layer} == {stored}


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({"transformer-heads": 3}, ["d_model 16 is not a multiple of num_heads 3"]),
        (
            {"enc-depth": "x", "transformer-heads": 0},
            ["encoder_layers is not valid", "num_heads"],
        ),
        ({"enc-depth": ..., "dim-emb": ...}, ["dim-emb is missing", "enc-depth is missing"]),
        ({"transformer-guided-alignment-layer": "0"}, ["transformer-guided-alignment-layer"]),
        ({"transformer-guided-alignment-layer": "4"}, ["alignment_layer 3 is none of 3 decoder layers"]),
    ],
)
def test_options_that_make_no_model_are_told_plainly(options, problems, tmp_path):
    said = {key: value for key, value in {**OPTIONS, **options}.items() if value is not ...}
    folder = write(tmp_path / "marian", said, arrays(OPTIONS), opus=True)
    with pytest.raises(DialectError) as error:
        open_model(folder)
    for found, expected in zip(sorted(p.what for p in error.value.problems), problems, strict=True):
        assert found.startswith(expected)
    assert "pydantic" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"a b c\n", "line 1"), (b"a\tb\nc\td\te\n", "line 2"), (b"\xff\xfe\t", "cannot be read")],
)
def test_a_vocabulary_map_is_one(content, found, tmp_path):
    """The engine would take tokens of a line without a tab as always allowed."""
    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    (folder / "map.txt").write_bytes(content)
    with pytest.raises(VocabularyError, match=found):
        api.convert(folder, tmp_path / "ct2", "ctranslate2", vmap=folder / "map.txt")
    assert not (tmp_path / "ct2").exists()


def test_the_vocabulary_map_of_a_model_bin_is_kept_replaced_or_missed(tmp_path):
    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    for name in "ab":
        (tmp_path / name).write_text(f"{name}\tx y\n\tz\n")
    api.convert(folder, tmp_path / "ct2", "ctranslate2", vmap=tmp_path / "a")
    assert "remarks" not in api.convert(tmp_path / "ct2", tmp_path / "kept", "ctranslate2")
    assert (tmp_path / "kept/vmap.txt").read_text() == "a\tx y\n\tz\n"
    api.convert(tmp_path / "ct2", tmp_path / "new", "ctranslate2", vmap=tmp_path / "b")
    assert (tmp_path / "new/vmap.txt").read_text() == "b\tx y\n\tz\n"
    facts = api.convert(tmp_path / "ct2", tmp_path / "back", "marian")
    assert facts["remarks"] == [
        "vmap.txt, the vocabulary map of the source, stays behind: --vmap puts it beside the output"
    ]


def test_what_a_dialect_cannot_say_names_the_model_and_a_way_out(fixtures):
    source = fixtures / "fixtures/ctranslate2-aren/aren-transliteration"
    with pytest.raises(DialectError, match="Marian cannot express this model") as error:
        api.convert(source, "out", "marian")
    assert error.value.where == str(source)
    assert "--to warmstart" in str(error.value)
