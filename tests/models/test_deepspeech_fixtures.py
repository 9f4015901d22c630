"""Models that TensorFlow trained: where they are found, and that they answer as they did there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from warmstart.api import diff, inspect
from warmstart.bundle.model import Model, open_model
from warmstart.formats.detect import find_candidates
from warmstart.models.deepspeech.mfcc import Mfcc

STEPS = {("coqui-digits-en", "best"): 3354, ("coqui-digits-en", "last"): 4680,
         ("coqui-bytes-en", "best"): 2128, ("coqui-bytes-en", "last"): 2800}  # fmt: skip


def module_of(model: Model) -> torch.nn.Module:
    family, config, reading = model.require()
    with torch.device("meta"):
        module = family.build(config)
    arrays = {name: torch.from_numpy(np.array(reading.read(name), order="C")) for name in reading.origins}
    module.load_state_dict(arrays, assign=True)
    return module.eval()


@pytest.mark.parametrize(("name", "which"), STEPS)
def test_logits_are_tensorflows_on_every_clip(fixtures: Path, name: str, which: str) -> None:
    folder = fixtures / "fixtures" / name
    module = module_of(open_model(f"{folder}@{which}"))
    features = np.load(folder / "expected/mfcc.npz")
    expected = np.load(folder / f"expected/logits{'_last' if which == 'last' else ''}.npz")
    assert len(expected.files) >= 3
    lengths = torch.tensor([len(features[clip]) for clip in expected.files])
    batch = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(features[clip]) for clip in expected.files], True)
    with torch.inference_mode():
        logits = module(batch, lengths)
    for row, clip in enumerate(expected.files):
        np.testing.assert_allclose(logits[row, : lengths[row]], expected[clip], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("name", "which"), STEPS)
def test_a_moved_directory_is_opened_by_its_state_files(fixtures: Path, tmp_path: Path, name: str, which: str) -> None:
    """The state files name directories of the machine that trained."""
    moved = tmp_path / "moved"
    shutil.copytree(fixtures / "fixtures" / name, moved, ignore=shutil.ignore_patterns("expected"))
    state = {"best": "best_dev_checkpoint", "last": "checkpoint"}[which]
    assert "/mnt/old-trainer/" in (moved / state).read_text()
    for source in (
        f"{moved}@{which}",
        moved / state,
        f"{moved}@{'best_dev' if which == 'best' else 'train'}-{STEPS[name, which]}",
    ):
        model = open_model(source)
        assert (model.checkpoint.step, model.dialect, model.remarks) == (STEPS[name, which], "coqui", [])
        assert model.reading.unknown == []
    assert {r for c in find_candidates(moved) for r in c.roles} == {"best", "last"}


def test_inspect_and_diff_say_what_a_person_asks(fixtures: Path) -> None:
    folder = fixtures / "fixtures/coqui-digits-en"
    facts = inspect(f"{folder}@best")
    assert (facts["family"], facts["dialect"], facts["step"]) == ("deepspeech", "coqui", 3354)
    assert (facts["vocabularies"]["text"]["size"], facts["vocabularies"]["text"]["kind"]) == (29, "alphabet")
    assert (facts["config"]["n_hidden"], facts["config"]["sample_rate"], facts["notes"]) == (64, 8000, [])
    assert {(s["slot"]) for s in facts["slots"]} == {"m", "v"}
    assert diff(f"{folder}@best", folder / "best_dev_checkpoint")["same"]
    assert not diff(f"{folder}@best", f"{folder}@last")["same"]


def test_loss_and_gradients_are_tensorflows(fixtures: Path) -> None:
    """Of eight recordings without dropout, from ``train-4680``; TensorFlow computed them in its own training graph."""
    soundfile = pytest.importorskip("soundfile")
    model = open_model(f"{fixtures}/fixtures/coqui-digits-en@last")
    c, alphabet, module = model.config, model.vocabularies["text"], module_of(model)
    expected = np.load(fixtures / "fixtures/coqui-digits-en/expected/resume_step.npz")
    mfcc = Mfcc(c.sample_rate, c.win_ms, c.step_ms, c.n_input)
    clips = [soundfile.read(fixtures / "data/fsdd" / clip, dtype="int16")[0] for clip in expected["clips"]]
    features = [torch.from_numpy(mfcc((clip / 32767).astype(np.float32))) for clip in clips]
    lengths = torch.tensor([len(x) for x in features])
    labels = [alphabet.encode(str(text)) for text in expected["transcripts"]]
    logits = module.requires_grad_(True)(torch.nn.utils.rnn.pad_sequence(features, True), lengths)
    losses = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), torch.tensor([i for ids in labels for i in ids]), lengths,
        torch.tensor([len(ids) for ids in labels]), blank=alphabet.blank_id, reduction="none",
    )  # fmt: skip
    losses.mean().backward()
    assert losses.mean().item() == pytest.approx(float(expected["loss_before"]), rel=1e-4)
    checked = 0
    for name, origin in model.reading.origins.items():
        (theirs,) = origin.link.foreign
        (gradient,) = origin.link.op.backward([module.get_parameter(name).grad.numpy()])
        norm = float(expected[f"grad_norm|{theirs}"])
        assert np.linalg.norm(gradient) == pytest.approx(norm, rel=1e-4)
        if f"grad|{theirs}" in expected.files:
            np.testing.assert_allclose(gradient, expected[f"grad|{theirs}"], rtol=0, atol=3e-4 * norm)
            checked += 1
    assert checked == 7
