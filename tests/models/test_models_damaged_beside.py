"""Files beside a model that hold something else: an error that names them, and nothing that is ignored in silence."""

from __future__ import annotations

import base64
import json

import pytest

import marian_models
import t5_models
import torch_models
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.errors import BundleError, ConfigError, DialectError, VocabularyError


@pytest.fixture
def marian(tmp_path):
    return marian_models.write(tmp_path / "marian", marian_models.OPTIONS, marian_models.arrays(marian_models.OPTIONS))


@pytest.fixture
def bundle(marian, tmp_path):
    api.convert(marian, tmp_path / "bundle", "warmstart")
    return tmp_path / "bundle"


@pytest.mark.parametrize("listed", ["1.5", "true", "vocab.src.yml", "{a: b}", "[1, 2]"])
def test_a_decoder_yml_that_lists_no_vocabularies(listed, marian):
    (marian / "model.npz.decoder.yml").write_text(f"models: [model.npz]\nvocabs: {listed}\n")
    with pytest.raises(VocabularyError, match="does not list vocabularies"):
        open_model(marian)


def test_a_decoder_yml_with_what_is_no_path(marian):
    (marian / "model.npz.decoder.yml").write_text('vocabs: [vocab.src.yml, "\\0"]\n')
    with pytest.raises(VocabularyError, match="cannot read the vocabulary"):
        open_model(marian)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
@pytest.mark.parametrize("name", ["lineage.json", "warmstart.json"])
def test_a_damaged_file_of_a_bundle(name, content, bundle):
    (bundle / name).write_text(content)
    with pytest.raises(BundleError, match="cannot be read"):
        open_model(bundle)


@pytest.mark.parametrize("files", [3, [], {"model.safetensors": 3}])
def test_a_manifest_without_sizes(files, bundle):
    manifest = json.loads((bundle / "warmstart.json").read_text())
    (bundle / "warmstart.json").write_text(json.dumps({**manifest, "files": files}))
    assert open_model(bundle).dialect == "warmstart"


def test_a_damaged_file_of_the_tokenizer_in_a_bundle(tmp_path):
    api.convert(t5_models.write(tmp_path / "t5", "t5"), tmp_path / "bundle", "warmstart")
    path = tmp_path / "bundle/vocabularies/text.json"
    for damage in (b'{"a', b"\xff\xff"):
        vocabulary = json.loads(path.read_text())
        vocabulary["files"]["config.json"] = base64.b64encode(damage).decode()
        path.write_text(json.dumps(vocabulary))
        with pytest.raises(VocabularyError, match="came along with the vocabulary is damaged"):
            api.convert(tmp_path / "bundle", tmp_path / "out", "transformers")


@pytest.mark.parametrize("kind", [[], {}])
def test_positions_of_eole_that_are_no_kind(kind, tmp_path):
    folder = torch_models.write_eole(tmp_path / "eole", "usual")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["embeddings"]["position_encoding_type"] = kind
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DialectError):
        open_model(folder)


def test_a_bundle_is_not_given_vocabularies(bundle, marian):
    with pytest.raises(ConfigError, match="brings its own vocabularies"):
        open_model(bundle, vocabularies=[str(marian / "vocab.src.yml")])


def test_what_is_no_bundle_is_not_read_as_one(bundle, marian):
    assert open_model(bundle, dialect="warmstart").dialect == "warmstart"
    with pytest.raises(DialectError, match="no model of warmstart"):
        open_model(marian, dialect="warmstart")
