"""model.bin of every version, read, requantized and taken back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from marian_models import OPTIONS, PRE, arrays, write
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.errors import ConfigError, DialectError, WarmstartError
from warmstart.formats.checkpoint import Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.model_bin import write_ctranslate2

WORDS = ["آتزمون", "آتشيسون", "آزا"]
FLOAT = [-0.15167, -0.13920, -0.15090]
SCORES = {  # reference/ctranslate2.md §5, computed in float32
    "v1/aren-transliteration": FLOAT,
    "v1/aren-transliteration-i16": [-0.15142, -0.14023, -0.15095],
    "aren-transliteration": FLOAT,
    "aren-transliteration-i8": [-0.15538, -0.14204, -0.14787],
    "aren-transliteration-i16": [-0.15142, -0.14023, -0.15095],
}


def engine(path: Path, compute: str = "float32"):
    ctranslate2 = pytest.importorskip("ctranslate2")
    return ctranslate2.Translator(str(path), compute_type=compute, intra_threads=1)


def scores(path: Path, compute: str = "float32") -> list[float]:
    results = engine(path, compute).translate_batch([list(w) for w in WORDS], beam_size=1, return_scores=True)
    assert ["".join(r.hypotheses[0]) for r in results] == ["atzmon", "achison", "azza"]
    return [r.scores[0] for r in results]


@pytest.mark.parametrize("name", SCORES)
def test_older_versions_become_version_6(name, fixtures, tmp_path):
    source = fixtures / "fixtures" / "ctranslate2-aren" / name
    api.convert(source, tmp_path / "new", "ctranslate2")
    assert open_checkpoint(tmp_path / "new").metadata["binary_version"] == 6
    assert scores(tmp_path / "new") == pytest.approx(SCORES[name], abs=6e-6)
    old, new = open_checkpoint(source), open_checkpoint(tmp_path / "new")
    kinds = [sorted(e.dtype for e in c.entries.values() if e.shape) for c in (old, new)]
    assert kinds[0] == kinds[1]  # nothing was rounded or widened


def test_version_2_scored_token_by_token(fixtures, tmp_path):
    api.convert(fixtures / "fixtures/ctranslate2-aren/aren-transliteration", tmp_path / "new", "ctranslate2")
    found = engine(tmp_path / "new").score_batch([list(WORDS[0]), list(WORDS[1])], [list("atzmon"), list("achison")])
    assert found[0].log_probs == pytest.approx(
        [-0.106023, -0.065410, -0.056002, -0.447953, -0.230714, -0.092184, -0.063463], rel=1e-4
    )
    assert found[1].log_probs == pytest.approx(
        [-0.072660, -0.300309, -0.181187, -0.395671, -0.025631, -0.123466, -0.002034, -0.012639], rel=1e-4
    )


def test_to_another_quantization(fixtures, tmp_path):
    source = fixtures / "fixtures/ctranslate2-aren/aren-transliteration"
    api.convert(source, tmp_path / "int8", "ctranslate2", quantize="int8")
    assert scores(tmp_path / "int8") == pytest.approx(FLOAT, abs=6e-3)  # products of integers differ by processor
    rounded = fixtures / "fixtures/ctranslate2-aren/aren-transliteration-i8"
    with pytest.raises(ConfigError, match="rounded a second time") as caught:
        api.convert(rounded, tmp_path / "int16", "ctranslate2", quantize="int16")
    assert "--requantize" in str(caught.value)
    facts = api.convert(rounded, tmp_path / "int16", "ctranslate2", quantize="int16", requantize=True, report=True)
    assert scores(tmp_path / "int16") == pytest.approx(SCORES["aren-transliteration-i8"], abs=3e-3)
    assert "at most one step" in next(iter(facts["ledger"]["lossy"].values()))
    assert max(loss["relative"] for loss in facts["losses"]) < 3e-3


def test_a_model_that_is_no_transformer_is_requantized_too(tmp_path):
    """Nothing of a family is needed from model.bin to model.bin."""
    rng = np.random.default_rng(0)
    contents = {
        "decoder/a/bias": rng.normal(size=5).astype(np.float32),
        "decoder/a/weight": rng.normal(size=(5, 4)).astype(np.float32),
        "decoder/num_heads": np.int16(2) * np.ones((), np.int16),
    }
    (tmp_path / "drama").mkdir()
    entries = [Entry(n, a.shape, a.dtype.name) for n, a in contents.items()]
    write_ctranslate2(
        tmp_path / "drama/model.bin", "Drama3Spec", 3, entries, contents.values(), {"z": "decoder/a/bias"}
    )
    (tmp_path / "drama/config.json").write_text('{"lang_ids": [1, 2]}')
    (tmp_path / "drama/vocabulary.json").write_text('["a", "b"]')
    api.convert(tmp_path / "drama", tmp_path / "new", "ctranslate2", quantize="int8_float16")
    new = open_checkpoint(tmp_path / "new")
    assert (new.metadata["specification"], new.metadata["revision"]) == ("Drama3Spec", 3)
    assert {n: e.dtype for n, e in new.entries.items()} == {
        "decoder/a/bias": "float16", "decoder/a/weight": "int8", "decoder/a/weight_scale": "float32",
        "decoder/num_heads": "int16", "z": "float16",
    }  # fmt: skip
    assert json.loads((tmp_path / "new/config.json").read_text()) == {"lang_ids": [1, 2]}
    assert json.loads((tmp_path / "new/vocabulary.json").read_text()) == ["a", "b"]
    with pytest.raises(DialectError, match="no family recognises"):
        api.convert(tmp_path / "drama", tmp_path / "bundle", "warmstart")


@pytest.mark.parametrize("quantization", ["int8", "int16", "float16", "bfloat16"])
def test_back_from_a_quantized_model(quantization, tmp_path):
    """To a bundle and to Marian: near the original by what the ledger states."""
    options = {**OPTIONS, **PRE, "tied-embeddings": True}
    contents = arrays(options)
    folder = write(tmp_path / "marian", options, contents)
    api.convert(folder, tmp_path / "ct2", "ctranslate2", quantize=quantization)
    facts = api.convert(tmp_path / "ct2", tmp_path / "back", "marian")
    exact = {f"{quantization} becomes float32, which is exact"}
    assert (set(facts["ledger"]["lossy"].values()) == exact) != quantization.startswith("int")
    largest = max(np.abs(array).max() for name, array in contents.items() if "_W" in name)  # Q, K, V share a scale
    with np.load(tmp_path / "back/model.npz") as found:
        for name, array in contents.items():
            bound = {"int8": 0.51 / 127, "int16": 0.51 / 1024, "float16": 2**-11, "bfloat16": 2**-8}[quantization]
            assert np.abs(found[name] - array).max() <= bound * largest, name
    again = api.convert(tmp_path / "back", tmp_path / "again", "ctranslate2", quantize=quantization)
    assert again["quantization"] == quantization
    assert (tmp_path / "again/model.bin").read_bytes() == (tmp_path / "ct2/model.bin").read_bytes()


def test_their_converters_models_are_understood(tmp_path):
    marian = pytest.importorskip("ctranslate2.converters.marian")
    options = {**OPTIONS, "tied-embeddings-all": True, "dim-vocabs": [41, 41]}
    folder = write(tmp_path / "marian", options, arrays(options))
    marian.MarianConverter(str(folder / "model.npz"), [str(folder / "vocab.yml")]).convert(str(tmp_path / "theirs"))
    model = open_model(tmp_path / "theirs")
    assert (model.config.sinusoids, model.config.layer_norm_epsilon) == ("transformers", 1e-5)
    api.convert(tmp_path / "theirs", tmp_path / "bundle", "warmstart")
    api.convert(tmp_path / "bundle", tmp_path / "ours", "ctranslate2")
    for name in ("model.bin", "config.json", "shared_vocabulary.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    back = api.convert(tmp_path / "theirs", tmp_path / "back", "marian")
    assert set(back["ledger"]["lossy"]) == {"positions", "layer_norm_epsilon"}  # Marian computes them its own way


def test_an_engine_model_says_why_it_is_not_run_here(fixtures, tmp_path):
    source = fixtures / "fixtures/ctranslate2-aren/aren-transliteration"
    api.convert(source, tmp_path / "bundle", "warmstart")
    with pytest.raises(WarmstartError, match="not run or trained by the native engine"):
        api.translate([tmp_path / "bundle"], ["a b"])
    api.convert(tmp_path / "bundle", tmp_path / "ct2", "ctranslate2")
    assert scores(tmp_path / "ct2") == pytest.approx(FLOAT, abs=6e-6)


@pytest.fixture
def exported(tmp_path) -> Path:
    folder = write(tmp_path / "marian", {**OPTIONS, **PRE}, arrays({**OPTIONS, **PRE}))
    api.convert(folder, tmp_path / "ct2", "ctranslate2")
    return tmp_path / "ct2"


def rewrite(folder: Path, change) -> None:
    """The model of ``folder`` with its arrays and aliases changed."""
    old = open_checkpoint(folder)
    contents = {n: np.array(old.read(n)) for n in old.entries if n not in old.ties}
    aliases = dict(old.ties)
    change(contents, aliases)
    entries = [Entry(n, a.shape, a.dtype.name) for n, a in contents.items()]
    write_ctranslate2(folder / "model.bin", "TransformerSpec", 7, entries, contents.values(), aliases)


LAX = {  # what the runtime loads without a word (reference §3)
    "extra variable": (lambda a, _: a.update(mystery=np.ones(3, np.float32)), "mystery would be left behind"),
    "missing bias": (
        lambda a, _: a.pop("encoder/layer_0/ffn/linear_0/bias"),
        "encoder/layer_0/ffn/linear_0/bias is missing",
    ),
    "missing beta": (
        lambda a, _: a.pop("decoder/layer_1/ffn/layer_norm/beta"),
        "decoder/layer_1/ffn/layer_norm/beta is missing",
    ),
    "missing middle layer": (
        lambda a, _: [a.pop(n) for n in list(a) if n.startswith("decoder/layer_1/")],
        "decoder/layer_1 is missing before later layers",
    ),
    "transposed weight": (
        lambda a, _: a.update(
            {"encoder/layer_1/ffn/linear_0/weight": a["encoder/layer_1/ffn/linear_0/weight"].T.copy()}
        ),
        r"encoder/layer_1/ffn/linear_0/weight has another shape",
    ),
    "unknown activation": (
        lambda a, _: a.update({f"{s}/activation": np.full((), 9, np.int8) for s in ("encoder", "decoder")}),
        "activation 9 is not supported",
    ),
    "heads that do not divide": (
        lambda a, _: a.update({f"{s}/num_heads": np.full((), 3, np.int16) for s in ("encoder", "decoder")}),
        "not a multiple of num_heads 3",
    ),
}


@pytest.mark.parametrize("to", ["warmstart", "ctranslate2"])
@pytest.mark.parametrize("case", LAX)
def test_what_the_runtime_lets_pass_is_refused_by_name(case, to, exported, tmp_path):
    change, match = LAX[case]
    rewrite(exported, change)
    with pytest.raises(DialectError, match=match.replace("left behind", "(left behind|passed on)")):
        api.convert(exported, tmp_path / "out", to, quantize="int8" if to == "ctranslate2" else None)
    assert not (tmp_path / "out").exists()


def test_a_missing_last_layer_is_another_model(exported, tmp_path):
    """Nothing in the file says how many layers there were; warmstart.json of our own conversion does."""
    rewrite(exported, lambda a, _: [a.pop(n) for n in list(a) if n.startswith("decoder/layer_2/")])
    with pytest.raises(DialectError, match="the file's decoder_layers are others\n  expected: 3\n  found: 2"):
        api.convert(exported, tmp_path / "bundle", "warmstart")
    (exported / "warmstart.json").unlink()
    api.convert(exported, tmp_path / "bundle", "warmstart")
    assert open_model(tmp_path / "bundle").config.decoder_layers == 2


_W = "encoder/layer_0/ffn/linear_0/weight"


@pytest.mark.parametrize("to", ["warmstart", "ctranslate2"])
@pytest.mark.parametrize(
    ("dtype", "scale", "found"),
    [
        ("int8", None, "holds int8, which is no weight without a scale"),
        ("int8", np.ones(5, "f4"), "weight_scale does not fit"),
        ("int8", np.zeros(24, "f4"), "weight_scale is not positive"),
        ("int8", np.where(np.arange(24) == 3, np.nan, 1).astype("f4"), "weight_scale is not positive"),
        ("float32", np.ones(24, "f4"), "weight_scale would be"),
    ],
)
def test_scales_fit_what_they_scale(dtype, scale, found, to, exported, tmp_path):
    """CTranslate2 writes scales of 0 and NaN for rows that are not finite, and its engine reads any."""
    (exported / "warmstart.json").unlink()
    more = {} if scale is None else {f"{_W}_scale": scale}
    rewrite(exported, lambda a, _: a.update({_W: a[_W].astype(dtype), **more}))
    with pytest.raises(WarmstartError, match=found):
        api.convert(exported, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_what_a_model_bin_leaves_open_is_said(exported, tmp_path):
    shutil.rmtree(exported / "vocabularies")
    rewrite(exported, lambda a, _: [a.pop(n) for n in list(a) if n.endswith("/num_heads")])
    file = exported / "source_vocabulary.json"
    tokens = json.loads(file.read_text())
    file.write_text(json.dumps([*tokens[:-1], tokens[3]]))
    (exported / "warmstart.json").unlink()
    assert api.convert(exported, tmp_path / "out", "warmstart")["remarks"] == [
        "the file does not say encoder/num_heads: taken is 8",
        "the file does not say decoder/num_heads: taken is 8",
        f"tokens of the source vocabulary occur again (1, such as {tokens[3]!r}): the first row counts",
    ]


def test_a_last_layer_that_gives_alignments(exported, tmp_path):
    (exported / "warmstart.json").unlink()
    rewrite(exported, lambda a, _: a.update({"decoder/alignment_layer": np.asarray(np.int16(3))}))
    with pytest.raises(DialectError, match="alignment_layer 3 is none of 3 decoder layers"):
        api.convert(exported, tmp_path / "bundle", "warmstart")


def test_what_config_json_must_say_it_must_say(exported, tmp_path):
    """As the engine, which does not open such a model; what the engine takes for the rest is said."""
    rewrite(exported, lambda a, _: a.update({"decoder/start_from_zero_embedding": np.asarray(np.int8(0))}))
    file = exported / "config.json"
    said = json.loads(file.read_text())
    file.unlink()
    for to in ("warmstart", "ctranslate2"):
        with pytest.raises(DialectError, match=r"needs its config\.json") as error:
            api.convert(exported, tmp_path / "out", to)
        assert error.value.expected == "bos_token, eos_token, unk_token, add_source_bos, add_source_eos"
    file.write_text(json.dumps({**said, "unk_token": None, "add_source_eos": 1}))
    with pytest.raises(DialectError, match="lacks what CTranslate2 needs") as error:
        api.convert(exported, tmp_path / "out", "warmstart")
    assert [p.what for p in error.value.problems] == ["unk_token is null", "add_source_eos is 1"]
    del said["decoder_start_token"]
    file.write_text(json.dumps(said))
    facts = api.convert(exported, tmp_path / "out", "warmstart")
    assert facts["remarks"] == [
        "config.json does not say decoder_start_token: "
        "taken is none, which the user of the engine gives with every input"
    ]
    assert open_model(tmp_path / "out").config.decoder_start == "given"


def test_a_vocabulary_too_long(exported, tmp_path):
    for file in (exported / "source_vocabulary.json", *(exported / "vocabularies").glob("*")):
        file.unlink()
    (exported / "source_vocabulary.json").write_text(json.dumps(["</s>", "<unk>", *map(str, range(60))]))
    with pytest.raises(WarmstartError, match="source vocabulary does not fit"):
        api.convert(exported, tmp_path / "bundle", "warmstart")


def test_a_vocabulary_too_long_is_not_passed_on(exported, tmp_path):
    """Our own vocabularies lie beside and fit, but the engine reads this one."""
    table = exported / "source_vocabulary.json"
    table.write_text(json.dumps([*json.loads(table.read_text()), "more"]))
    with pytest.raises(WarmstartError, match="source vocabulary does not fit"):
        api.convert(exported, tmp_path / "out", "ctranslate2", quantize="int8")


def test_trailing_bytes(exported, tmp_path):
    good = (exported / "model.bin").read_bytes()
    (exported / "model.bin").write_bytes(good + b"more")
    with pytest.raises(WarmstartError, match="the end of the file"):
        api.convert(exported, tmp_path / "bundle", "warmstart")
