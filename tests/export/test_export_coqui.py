"""Coqui's checkpoints written: the same bytes back, cuDNN both ways, and what is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import coqui_models
from coqui_models import CELL, LABELS, OPAQUE, config, save, tensors, trained
from warmstart.bundle.model import open_model
from warmstart.errors import VocabularyError
from warmstart.export.convert import convert_model
from warmstart.formats.checkpoint import Entry
from warmstart.formats.detect import find_candidates, open_checkpoint
from warmstart.formats.safetensors import write_safetensors
from warmstart.models.family import Facts

FILES = ("best_dev-12.index", "best_dev-12.data-00000-of-00001")


def convert(source: Path | str, destination: Path, to: str, **how):
    return convert_model(open_model(source, **how), destination, to)


def everything(path: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in open_checkpoint(path).tensors()}


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(("cudnn", "dialect"), [(False, "coqui"), (True, "coqui-cudnn")])
def test_a_checkpoint_written_back_is_the_same_bytes(tmp_path, cudnn: bool, dialect: str, layer_norm: bool) -> None:
    source = trained(tmp_path / "run", config(layer_norm=layer_norm), cudnn=cudnn)
    facts = convert(source, tmp_path / "out", dialect)
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (source.parent / name).read_bytes()
    assert facts["ledger"]["left_behind"] == facts["ledger"]["optimizer_left_behind"] == facts["ledger"]["lossy"] == {}
    assert (tmp_path / "out/alphabet.txt").read_bytes() == (source.parent / "alphabet.txt").read_bytes()
    before, after = (json.loads((p / "flags.txt").read_text()) for p in (source.parent, tmp_path / "out"))
    assert {key: after[key] for key in before} == before
    (candidate,) = find_candidates(tmp_path / "out")
    assert set(candidate.roles) == {"best", "last"}


def test_cudnn_to_fused_and_back_is_bit_equal_with_every_state(tmp_path) -> None:
    source = trained(tmp_path / "run", cudnn=True)
    convert(source, tmp_path / "fused", "coqui")
    convert(tmp_path / "fused", tmp_path / "again", "coqui-cudnn")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (source.parent / name).read_bytes()
    fused = everything(tmp_path / "fused")
    assert not [name for name in fused if name.startswith(OPAQUE)]
    assert {f"{CELL}/{leaf}{slot}" for leaf in ("kernel", "bias") for slot in ("", "/Adam", "/Adam_1")} <= set(fused)


def test_fused_to_cudnn_and_back_is_bit_equal_with_every_state(tmp_path) -> None:
    source = trained(tmp_path / "run")
    convert(source, tmp_path / "cudnn", "coqui-cudnn")
    convert(tmp_path / "cudnn", tmp_path / "again", "coqui")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (source.parent / name).read_bytes()
    names = set(everything(tmp_path / "cudnn"))
    assert {OPAQUE, f"{OPAQUE}/Adam", f"{OPAQUE}/Adam_1", f"{CELL}/kernel", f"{CELL}/bias"} <= names
    assert f"{CELL}/kernel/Adam" not in names


def test_the_ledger_says_where_the_biases_were_no_halves(tmp_path) -> None:
    arrays = tensors(config(), cudnn=True)
    arrays[OPAQUE][-3] += 0.5
    arrays[f"{CELL}/bias"][-3] += 0.5
    biases = arrays[OPAQUE][-24:] + arrays[OPAQUE][-48:-24]
    arrays[f"{CELL}/bias"] = biases[[*range(6), *range(12, 18), *range(6, 12), *range(18, 24)]]
    source = save(tmp_path / "run", arrays, {"audio_sample_rate": 8000}, "\n".join(LABELS))
    ledger = convert(source, tmp_path / "out", "coqui")["ledger"]
    assert list(ledger["lossy"]) == ["lstm.bias"]
    assert "not halves of one in 1 of 24 places" in ledger["lossy"]["lstm.bias"]
    np.testing.assert_array_equal(everything(tmp_path / "out")[f"{CELL}/bias"], arrays[f"{CELL}/bias"])


def test_a_bundle_returns_bit_equal_with_adam_before_its_first_step(tmp_path) -> None:
    source = trained(tmp_path / "run")
    convert(source, tmp_path / "bundle", "warmstart")
    convert(tmp_path / "bundle", tmp_path / "out", "coqui")
    before, after = everything(source), everything(tmp_path / "out")
    weights = [name for name in before if "Adam" not in name and before[name].ndim]
    assert all(after[name].tobytes() == before[name].tobytes() for name in weights)
    rest = {name: array for name, array in after.items() if name not in weights}
    assert rest == {
        "global_step": 0, "beta1_power": np.float32(0.9), "beta2_power": np.float32(0.999)
    }  # fmt: skip
    model = open_model(tmp_path / "out")
    assert model.config == open_model(source).config
    assert model.vocabularies["text"].fingerprint == open_model(source).vocabularies["text"].fingerprint


def test_adams_powers_are_of_the_runs_own_decays_and_updates(tmp_path) -> None:
    """β^(updates + 1), as TensorFlow's Adam keeps them."""
    convert(trained(tmp_path / "run"), tmp_path / "bundle", "warmstart")
    model = open_model(tmp_path / "bundle")
    facts = Facts(step=4690, slots=True, betas=(0.5, 0.75), updates=10)
    written = coqui_models.COQUI.scalars(model.config, facts)
    assert written == {"global_step": 4690, "beta1_power": np.float32(0.5**11), "beta2_power": np.float32(0.75**11)}


def test_byte_mode_returns_as_byte_mode(tmp_path) -> None:
    flags = {"audio_sample_rate": 8000, "bytes_output_mode": True}
    source = save(tmp_path / "run", tensors(config(vocab_size=256)), flags, "whatever")
    convert(source, tmp_path / "bundle", "warmstart")
    assert open_model(tmp_path / "bundle").vocabularies["text"].utf8
    convert(tmp_path / "bundle", tmp_path / "out", "coqui")
    assert json.loads((tmp_path / "out/flags.txt").read_text())["bytes_output_mode"] is True
    assert not (tmp_path / "out/alphabet.txt").exists()
    assert open_model(tmp_path / "out").vocabularies["text"].utf8


def test_what_belongs_to_mixed_precision_is_left_behind_with_a_reason(tmp_path) -> None:
    arrays = tensors(config())
    arrays |= {"current_loss_scale": np.asarray(32768.0, np.float32), "good_steps": np.asarray(7, np.int32)}
    source = save(tmp_path / "run", arrays, {"audio_sample_rate": 8000}, "\n".join(LABELS))
    ledger = convert(source, tmp_path / "out", "coqui")["ledger"]
    assert set(ledger["optimizer_left_behind"]) == {"current_loss_scale", "good_steps"}
    assert all("mixed precision" in why for why in ledger["optimizer_left_behind"].values())
    assert set(arrays) - set(everything(tmp_path / "out")) == {"current_loss_scale", "good_steps"}


def test_cudnns_array_is_left_behind_with_a_reason_where_it_is_not_read(tmp_path) -> None:
    source = trained(tmp_path / "run", cudnn=True)
    ledger = convert(source, tmp_path / "out", "coqui", dialect="coqui")["ledger"]
    assert "cuDNN's layout" in ledger["left_behind"][OPAQUE]


def test_vocabularies_of_other_kinds_are_refused(tmp_path) -> None:
    from warmstart.vocabularies.characters import CharacterVocabulary

    model = open_model(trained(tmp_path / "run"))
    model.vocabularies["text"] = CharacterVocabulary(("</s>", "<unk>", *"abcde"))
    with pytest.raises(VocabularyError, match="needs an alphabet"):
        convert_model(model, tmp_path / "out", "coqui")


def test_remarks_are_recorded(tmp_path) -> None:
    source = save(tmp_path / "run", tensors(config()), None, "\n".join(LABELS))
    facts = convert(source, tmp_path / "out", "coqui")
    record = json.loads((tmp_path / "out/conversion.json").read_text())
    assert record["remarks"] == facts["remarks"]
    assert "Coqui's defaults" in record["remarks"][0]


@pytest.mark.parametrize("name", ["coqui-digits-en", "coqui-bytes-en"])
@pytest.mark.parametrize("which", ["best", "last"])
def test_what_tensorflow_wrote_returns_byte_for_byte(fixtures: Path, tmp_path: Path, name: str, which: str) -> None:
    folder = fixtures / "fixtures" / name
    convert(f"{folder}@{which}", tmp_path / "out", "coqui")
    written = sorted(path.name for path in (tmp_path / "out").glob("*-*"))
    assert len(written) == 2
    for file in written:
        assert (tmp_path / "out" / file).read_bytes() == (folder / file).read_bytes()
    convert(tmp_path / "out", tmp_path / "cudnn", "coqui-cudnn")
    convert(tmp_path / "cudnn", tmp_path / "again", "coqui")
    for file in written:
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def test_a_run_is_written_with_its_optimizer_as_coqui_would_have_it(tmp_path) -> None:
    """From a run's last checkpoint: Adam's moments where Coqui has them, its powers after as many updates."""
    source = open_model(trained(tmp_path / "source"))
    convert_model(source, tmp_path / "run/model", "warmstart")
    last = tmp_path / "run/checkpoints/step-00000012"
    last.mkdir(parents=True)
    names = list(source.reading.origins)
    weights = {name: np.ascontiguousarray(source.reading.read(name)) for name in names}
    slots = {
        f"{slot}.{name}": np.ascontiguousarray(source.reading.read_slot(name, slot)) for name in names for slot in "mv"
    }
    for file, arrays in (("model", weights), ("optimizer", slots)):
        entries = [Entry(name, array.shape, "float32") for name, array in arrays.items()]
        write_safetensors(last / f"{file}.safetensors", entries, arrays.values(), {})
    (last / "state.json").write_text('{"step": 12}')
    convert_model(open_model(tmp_path / "run", with_state=True), tmp_path / "out", "coqui")
    before, after = everything(tmp_path / "source/best_dev-12"), everything(tmp_path / "out")
    assert set(before) - set(after) == {"learning_rate"}
    for name, array in after.items():
        np.testing.assert_array_equal(array, before[name], name)
