"""CTranslate2's commands and classes, with their own flags."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import decoder_models
import huggingface_models
import warmstart
from marian_models import OPTIONS, arrays, write
from warmstart import converters
from warmstart.cli import verbs
from warmstart.errors import ConfigError, DialectError, FormatError, Problem, VocabularyError
from warmstart.frontends import ct2

SHARED = {**OPTIONS, "tied-embeddings-all": True, "dim-vocabs": [41, 41]}


@pytest.fixture
def opus(tmp_path) -> Path:
    return write(tmp_path / "opus", SHARED, arrays(SHARED), opus=True)


@pytest.fixture
def expected(opus, tmp_path) -> bytes:
    warmstart.convert(opus, tmp_path / "expected", "ctranslate2", quantize="int8")
    return (tmp_path / "expected/model.bin").read_bytes()


def test_commands(opus, expected, tmp_path):
    (tmp_path / "map").write_text("a\tb\n")
    ct2.run("ct2-opus-mt-converter", ["--model_dir", str(opus), "--output_dir", str(tmp_path / "a"),
            "--quantization", "int8", "--vocab_mapping", str(tmp_path / "map")])  # fmt: skip
    assert (tmp_path / "a/model.bin").read_bytes() == expected
    assert (tmp_path / "a/vmap.txt").read_text() == "a\tb\n"
    vocabulary = str(opus / "vocab.yml")
    for paths in ([vocabulary], [vocabulary, vocabulary]):
        ct2.run("ct2-marian-converter", ["--model_path", str(opus / "model.npz"), "--vocab_paths", *paths,
                "--output_dir", str(tmp_path / "a"), "--quantization", "int8", "--force"])  # fmt: skip
        assert (tmp_path / "a/model.bin").read_bytes() == expected


def test_classes(opus, expected, tmp_path):
    output = converters.OpusMTConverter(str(opus)).convert(str(tmp_path / "a"), quantization="int8")
    assert output == str(tmp_path / "a")
    assert (tmp_path / "a/model.bin").read_bytes() == expected
    marian = converters.MarianConverter(str(opus / "model.npz"), [str(opus / "vocab.yml")])
    marian.convert(str(tmp_path / "a"), None, "int8", True)
    assert (tmp_path / "a/model.bin").read_bytes() == expected
    import argparse

    parser = converters.Converter.declare_arguments(argparse.ArgumentParser())
    args = parser.parse_args(["--output_dir", str(tmp_path / "b"), "--quantization", "int8"])
    assert converters.OpusMTConverter(opus).convert_from_args(args) == str(tmp_path / "b")
    assert (tmp_path / "b/model.bin").read_bytes() == expected


def test_the_package_offers_its_verbs_lazily(opus, tmp_path):
    assert not warmstart.contains_model(opus)
    assert warmstart.converters is converters
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = warmstart.nonsense
    code = "import sys, warmstart; assert 'warmstart.api' not in sys.modules; warmstart.contains_model('.')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_command_is_offered():
    names = {command.name for command in verbs.app.registered_commands if command.name}
    assert set(ct2.CONVERTERS) <= names


@pytest.mark.parametrize("command", ct2.CONVERTERS)
def test_upstream_takes_the_same_flags(command):
    """Every flag of the installed release, spelt alike, required alike."""
    import argparse
    from importlib import import_module

    module = command.removeprefix("ct2-").removesuffix("-converter").replace("-", "_")
    theirs = import_module(f"ctranslate2.converters.{module}")
    parsers = []
    original = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = lambda self, *_: parsers.append(self) or sys.exit()  # type: ignore[method-assign]
    try:
        with pytest.raises(SystemExit):
            theirs.main()
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]

    def flags(parser) -> dict[str, tuple[object, ...]]:
        return {
            a.option_strings[0]: (a.required, a.nargs, tuple(a.choices or ()))
            for a in parser._actions
            if a.dest != "help"
        }

    ours = ct2.parser_of(command)
    assert flags(ours) == flags(parsers[0])


def test_the_command_line(opus, tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "warmstart", *arguments], capture_output=True, text=True, check=False
        )

    done = run("ct2-opus-mt-converter", "--model_dir", str(opus), "--output_dir", str(tmp_path / "a"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "ctranslate2" in done.stdout
    again = run("ct2-opus-mt-converter", "--model_dir", str(opus), "--output_dir", str(tmp_path / "a"))
    assert again.returncode == 1
    assert "exists already" in again.stderr
    helped = run("ct2-opus-mt-converter", "--help")
    assert (helped.returncode, "--model_dir" in helped.stdout, "--quantization" in helped.stdout) == (0, True, True)
    wrong = run("ct2-opus-mt-converter", "--model_dir", str(opus))
    assert (wrong.returncode, "--output_dir" in wrong.stderr) == (2, True)


BOTH = "give --vocab SOURCE_FILE --vocab TARGET_FILE"
CONVERT = "`warmstart convert MODEL OUTPUT --to ctranslate2`"


@pytest.mark.parametrize(
    ("command", "advice", "said"),
    [
        ("marian", BOTH, "give --vocab_paths SOURCE_FILE TARGET_FILE"),
        ("fairseq", BOTH, "give --data_dir DIRECTORY"),
        ("fairseq", "say it: --from fairseq:de,en", "say it: --source_lang de --target_lang en"),
        ("opennmt-tf", BOTH, "give --src_vocab SOURCE_FILE --tgt_vocab TARGET_FILE"),
        ("opennmt-tf", "give --vocab TEXT_FILE", "give --src_vocab TEXT_FILE"),
        ("opennmt-tf", "name it: --from opennmt-tf:NAME", "name it: --model_type NAME"),
        ("opennmt-tf", "--from opennmt-tf:NAME,start,end,auto, of which any may be left out", "--model_type NAME"),
        ("transformers", "leave it out of --copy-files", "leave it out of --copy_files"),
        ("opennmt-py", "--no-strict leaves behind", f"--no-strict leaves behind, in {CONVERT}"),
        ("marian", "give --vmap", "give --vocab_mapping"),
        ("marian", "pip install --upgrade ml_dtypes", "pip install --upgrade ml_dtypes"),
        ("marian", "use `warmstart translate --engine native`", "use `warmstart translate --engine native`"),
    ],
)  # fmt: skip
def test_advice_names_flags_of_the_command(command, advice, said, monkeypatch):
    def refuse(source, *_, **__):
        raise DialectError("no", problems=[Problem("nor this", todo=advice)], todo=advice)

    monkeypatch.setattr(warmstart.api, "convert", refuse)
    flags = {"marian": ["--model_path", "MODEL", "--vocab_paths", "v"], "transformers": ["--model", "/"],
             "fairseq": ["--model_path", "MODEL", "--data_dir", "d"]}  # fmt: skip
    with pytest.raises(DialectError) as error:
        ct2.run(f"ct2-{command}-converter", [*flags.get(command, ["--model_path", "MODEL"]), "--output_dir", "o"])
    assert (error.value.todo, error.value.problems[0].todo) == (said, said)
    assert str(error.value).count(f"to do: {said}\n") + str(error.value).endswith(said) == 2


def test_a_destination_without_a_name(opus):
    with pytest.raises(ConfigError, match="the destination is an empty path"):
        ct2.run("ct2-opus-mt-converter", ["--model_dir", str(opus), "--output_dir", "", "--force"])


def test_opus_mt_has_no_flag_for_vocabularies(opus, tmp_path):
    (opus / "vocab.yml").unlink()
    (opus / "decoder.yml").unlink()
    with pytest.raises(VocabularyError) as error:
        ct2.run("ct2-opus-mt-converter", ["--model_dir", str(opus), "--output_dir", str(tmp_path / "o")])
    assert error.value.todo == f"{BOTH}, in {CONVERT.replace('MODEL', str(opus))}"


def test_other_commands_have_their_own_flags(tmp_path):
    source = huggingface_models.write(tmp_path / "bart", "bart")
    ct2.run("ct2-transformers-converter", ["--model", str(source), "--output_dir", str(tmp_path / "a"),
            "--copy_files", "tokenizer.json", "--low_cpu_mem_usage", "--quantization", "int8"])  # fmt: skip
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    converters.TransformersConverter(source, copy_files=["tokenizer.json"]).convert(tmp_path / "b", quantization="int8")
    assert (tmp_path / "a/model.bin").read_bytes() == (tmp_path / "b/model.bin").read_bytes()
    for quantization, same in ((None, "float16"), ("int8", "int8_float16"), ("int16", "int16")):
        halves = converters.TransformersConverter(source, load_as_float16=True)
        halves.convert(tmp_path / "halves", quantization=quantization, force=True)
        converters.TransformersConverter(source).convert(tmp_path / "said", quantization=same, force=True)
        assert (tmp_path / "halves/model.bin").read_bytes() == (tmp_path / "said/model.bin").read_bytes(), same


def test_flags_may_be_shortened_as_there(opus, expected, tmp_path):
    ct2.run("ct2-opus-mt-converter", ["--model", str(opus), "--out", str(tmp_path / "a"), "--quant", "int8"])
    assert (tmp_path / "a/model.bin").read_bytes() == expected


def test_of_several_checkpoints_in_a_directory_transformers_takes_one(tmp_path):
    source = decoder_models.write(tmp_path / "source", "llama")
    run(source, tmp_path / "alone")
    weights = "model.safetensors"
    for other in ("other.safetensors", "model.fp16.safetensors"):
        (source / other).write_bytes((source / weights).read_bytes()[:-4] + b"\0\0\0\0")
    for k, name in enumerate((source, f"{source}@{weights}")):
        run(name, tmp_path / str(k))
        assert (tmp_path / str(k) / "model.bin").read_bytes() == (tmp_path / "alone/model.bin").read_bytes()
    run(f"{source}@model.fp16.safetensors", tmp_path / "other")
    assert (tmp_path / "other/model.bin").read_bytes() != (tmp_path / "alone/model.bin").read_bytes()
    with pytest.raises(FormatError, match="no checkpoint here is called 'x'"):
        run(f"{source}@x", tmp_path / "no")


def run(source, output) -> None:
    ct2.run("ct2-transformers-converter", ["--model", str(source), "--output_dir", str(output)])


def test_names_on_the_hub():
    def source(*arguments: str) -> str:
        parsed = ct2.parser_of("ct2-transformers-converter").parse_args([*arguments, "--output_dir", "out"])
        return ct2.CONVERTERS["ct2-transformers-converter"].request(parsed).source

    assert source("--model", "owner/name") == "hf:owner/name"
    assert source("--model", "owner/name", "--revision", "v1") == "hf:owner/name@v1"
    assert source("--model", "hf:owner/name@v1") == "hf:owner/name@v1"
    with pytest.raises(ConfigError, match="gpt2 is openai-community/gpt2"):
        source("--model", "gpt2")
    with pytest.raises(ConfigError, match="--revision is of a name on the Hub"):
        source("--model", "hf:owner/name", "--revision", "v1")


def test_languages_of_fairseq(tmp_path):
    """One of them is enough: the model says the other. Of a multilingual model they choose the pair."""
    torch = pytest.importorskip("torch")
    import torch_models

    model = torch_models.write_fairseq(tmp_path / "fairseq", "multilingual")
    content = torch.load(model, weights_only=False)
    content["model"] |= {n.replace("de-en", "fr-en"): a * 2 for n, a in content["model"].items()}
    torch.save(content, model)
    flags = ["--model_path", str(model), "--data_dir", str(model.parent)]
    (model.parent / "dict.fr.txt").write_bytes((model.parent / "dict.de.txt").read_bytes())
    for name, more in {"de": [], "fr": ["--source_lang", "fr"]}.items():
        ct2.run("ct2-fairseq-converter", [*flags, *more, "--output_dir", str(tmp_path / name)])
    assert (tmp_path / "de/model.bin").read_bytes() != (tmp_path / "fr/model.bin").read_bytes()
    record = json.loads((tmp_path / "fr/conversion.json").read_text())
    assert record["options"]["from"] == "fairseq:fr,"
    assert [file["name"] for file in record["source"]["files"]] == ["model.pt", "dict.fr.txt", "dict.en.txt"]
    with pytest.raises(DialectError, match="de-en, fr-en"):
        ct2.run("ct2-fairseq-converter", [*flags, "--source_lang", "xx", "--output_dir", str(tmp_path / "no")])
    one = torch_models.write_fairseq(tmp_path / "one", "transformer")
    flags = ["--model_path", str(one), "--data_dir", str(one.parent), "--target_lang", "xx"]
    with pytest.raises(VocabularyError, match="the target dictionary is not there"):
        ct2.run("ct2-fairseq-converter", [*flags, "--output_dir", str(tmp_path / "no")])
    with pytest.raises(ConfigError, match="does not name two languages"):
        warmstart.convert(model, tmp_path / "no", "ctranslate2", from_="fairseq:de")


def test_classes_of_frameworks_that_need_not_be_there(tmp_path):
    import torch_models

    eole = torch_models.write_eole(tmp_path / "eole", "usual")
    assert converters.EoleConverter(eole).convert(str(tmp_path / "a")) == str(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"OpenNMTTFConverter\.from_config"):
        converters.OpenNMTTFConverter(object())


def test_every_class_of_ctranslate2_is_here_with_its_arguments():
    import inspect

    theirs = pytest.importorskip("ctranslate2").converters
    for name in (name for name in dir(theirs) if name.endswith("Converter")):
        expected = list(inspect.signature(getattr(theirs, name).__init__).parameters)
        found = inspect.signature(getattr(converters, name).__init__)
        if name != "Converter":
            assert list(found.parameters) == expected, name
        for method in ("convert", "convert_from_args", "declare_arguments"):
            ours, their = (inspect.signature(getattr(getattr(m, name), method)) for m in (converters, theirs))
            assert list(ours.parameters) == list(their.parameters), (name, method)
    ours, their = (inspect.signature(m.OpenNMTTFConverter.from_config) for m in (converters, theirs))
    assert list(ours.parameters) == list(their.parameters)


def test_commands_of_torch_files(tmp_path):
    pytest.importorskip("torch")
    import torch_models

    onmt = torch_models.write_onmt(tmp_path / "model.pt", "version 0.9")
    ct2.run("ct2-opennmt-py-converter", ["--model_path", str(onmt), "--output_dir", str(tmp_path / "a")])
    converters.OpenNMTPyConverter(onmt).convert(tmp_path / "b")
    assert (tmp_path / "a/model.bin").read_bytes() == (tmp_path / "b/model.bin").read_bytes()
    fairseq = torch_models.write_fairseq(tmp_path / "fairseq", "transformer")
    flags = ["--model_path", str(fairseq), "--data_dir", str(fairseq.parent), "--force"]
    written = {}
    for name, more in {
        "languages": ["--source_lang", "de", "--target_lang", "en"],
        "found": [],
        "plain": ["--no_default_special_tokens"],
    }.items():
        ct2.run("ct2-fairseq-converter", [*flags, *more, "--output_dir", str(tmp_path / "c")])
        written[name] = (tmp_path / "c/config.json").read_text()
    assert written["languages"] == written["found"]
    plain = json.loads(written["plain"])
    assert (plain["decoder_start_token"], plain["add_source_eos"]) == (None, False)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("[1]", "the configuration holds no keys"),
        ("data: [1]", "data holds no keys"),
        ("data: .nan", "data holds no keys"),
        ("data: {target_vocabulary: 1.5}", r"data\.target_vocabulary is no text\n  found: 1\.5"),
        ("{model_dir: [], data: {source_1_vocabulary: {a: b}}}", r"source_1_vocabulary is(.|\n)*model_dir is"),
        ("[" * 5000, "cannot be read"),
    ],
)  # fmt: skip
def test_a_configuration_of_opennmt_tf_of_other_types_is_refused(content, found, tmp_path):
    (tmp_path / "c.yml").write_text(content)
    with pytest.raises(ConfigError, match=found) as error:
        ct2.run("ct2-opennmt-tf-converter", ["--config", str(tmp_path / "c.yml"), "--output_dir", str(tmp_path / "o")])
    assert error.value.where == str(tmp_path / "c.yml")


@pytest.mark.parametrize(
    ("command", "arguments", "reason"),
    [
        ("ct2-transformers-converter", ["--model", "x", "--trust_remote_code"], "no code of a model is run"),
        ("ct2-opennmt-py-converter", ["--model_path", "x", "--unsafe_deserialization"], "without running"),
        ("ct2-fairseq-converter", ["--model_path", "x", "--data_dir", "y", "--user_dir", "z"], "no code is run"),
    ],
)
def test_flags_that_would_run_code_are_refused_with_the_safe_way(command, arguments, reason, tmp_path):
    with pytest.raises(ConfigError, match=reason):
        ct2.run(command, [*arguments, "--output_dir", str(tmp_path / "no")])
