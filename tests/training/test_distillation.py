"""Distillation: against plain torch at word level; decoded once, and whatever happens, at sequence level."""

from __future__ import annotations

import copy
import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from warmstart import api
from warmstart.bundle.layout import storages, write_bundle
from warmstart.bundle.model import open_model
from warmstart.data.index import Counts, EncodedSplit
from warmstart.data.plan import Position
from warmstart.errors import DataError, VocabularyError
from warmstart.inference.scorer import TransformerScorer
from warmstart.inference.search import Hypothesis, SearchConfig, translate_ids
from warmstart.models.registry import family
from warmstart.training import distillation
from warmstart.training.config import Distillation, TrainingConfig
from warmstart.training.distillation import Teacher, distilled_split, divergence, mean_probabilities, open_teachers
from warmstart.training.objective import CrossEntropy
from warmstart.training.precision import autocast
from warmstart.vocabularies.characters import CharacterVocabulary

LETTERS = CharacterVocabulary.train(["abcdefghi"])  # with end and unknown row as many as conftest's VOCABULARY
SIDES = {"source": LETTERS, "target": LETTERS}
CPU = torch.device("cpu")


def teacher(model: Any) -> Teacher:
    return Teacher("teacher", model.config, model)


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def distilling(config: TrainingConfig, **options: Any) -> TrainingConfig:
    return config.model_copy(update={"distillation": Distillation(teachers=("t",), **options)})


# --- word level -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_its_own_outputs_teach_a_model_nothing(build, batch, config, precision: str) -> None:  # type: ignore[no-untyped-def]
    model = build(dropout=0.0)
    objective = CrossEntropy(distilling(config), [teacher(copy.deepcopy(model))])
    with autocast(precision, CPU):
        own, plain = objective(model, batch), CrossEntropy(config)(model, batch)
    assert own.loss.item() == pytest.approx(0.0, abs=1e-6)
    assert own.nll.item() == plain.nll.item() > 1.0
    assert gradient(model, own.loss).norm() <= 1e-6 * gradient(model, plain.loss).norm()


@pytest.mark.parametrize(("temperature", "weight", "count"), [(1.0, 1.0, 1), (2.5, 0.3, 1), (0.7, 0.6, 3)])
def test_loss_and_gradient_are_the_formulas(  # type: ignore[no-untyped-def]
    build, batch, config, temperature: float, weight: float, count: int
) -> None:
    model, teachers = build(dropout=0.0), [build(dropout=0.3, seed=seed) for seed in range(5, 5 + count)]
    options = distilling(config, temperature=temperature, weight=weight)
    found = CrossEntropy(options, [teacher(t) for t in teachers])(model, batch).loss

    source, target = torch.from_numpy(batch.source).long(), torch.from_numpy(batch.target).long()
    lengths, ends = torch.from_numpy(batch.source_lengths).long(), torch.from_numpy(batch.target_lengths).long()
    real = torch.arange(target.shape[1]) < ends[:, None]
    logits = model(source, lengths, target)[real]
    with torch.no_grad():
        p = torch.stack([torch.softmax(t(source, lengths, target)[real] / temperature, -1) for t in teachers]).mean(0)
    log_q = torch.log_softmax(logits / temperature, -1)
    kl = (p * (p.log() - log_q)).sum()
    plain = torch.nn.functional.cross_entropy(logits, target[real], reduction="sum", label_smoothing=0.1)
    expected = (1 - weight) * plain + weight * temperature**2 * kl
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(model, found), gradient(model, expected), rtol=1e-4, atol=1e-6)


def test_temperature_keeps_the_scale_of_the_gradient() -> None:
    """With T² the gradient goes to (z - v)/V for zero-mean logits as T grows (Hinton et al. 2015, eq. 4)."""
    z, v = (torch.randn(4, 8, dtype=torch.float64).float() for _ in range(2))
    z, v = z - z.mean(-1, keepdim=True), v - v.mean(-1, keepdim=True)
    z.requires_grad_()
    (found,) = torch.autograd.grad(divergence(z, torch.softmax(v / 100.0, -1), 100.0), z)
    torch.testing.assert_close(found, (z.detach() - v) / 8, rtol=0.1, atol=3e-3)


def test_gradient_of_the_divergence_is_its_slope() -> None:
    z, p = torch.randn(3, 5, requires_grad=True), torch.softmax(torch.randn(3, 5), -1)
    (found,) = torch.autograd.grad(3.0 * divergence(z, p, 1.7), z)
    step = 1e-2
    for i, j in itertools.product(range(3), range(5)):
        shift = torch.zeros(3, 5)
        shift[i, j] = step
        difference = 3.0 * (divergence(z + shift, p, 1.7) - divergence(z - shift, p, 1.7)) / (2 * step)
        assert difference.item() == pytest.approx(found[i, j].item(), abs=2e-3)


def test_teachers_are_frozen_and_never_drop_out(build, batch, config) -> None:  # type: ignore[no-untyped-def]
    student, model = build(dropout=0.0), build(dropout=0.5, seed=2).train()
    objective = CrossEntropy(distilling(config), [teacher(model)])
    first, second = objective(student, batch).loss, objective(student, batch).loss
    assert torch.equal(first, second)
    first.backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert any(parameter.grad is not None for parameter in student.parameters())


def test_a_student_becomes_its_teacher(build, stream, config) -> None:  # type: ignore[no-untyped-def]
    """The targets are noise, so only the teacher can be learnt from."""
    student, model = build(dropout=0.0), build(seed=2)
    objective = CrossEntropy(distilling(config), [teacher(model)])
    batches = [batch for _, (_, batch) in zip(range(40), stream().iterate(Position()), strict=False)]
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    course = []
    for batch in batches * 2:
        loss = objective(student, batch)
        (loss.loss / loss.units).backward()
        optimizer.step()
        optimizer.zero_grad()
        course.append(loss.loss.item() / loss.units)
    assert np.mean(course[-10:]) < 0.2 * np.mean(course[:3])


def test_an_ensemble_is_the_mean_of_probabilities(build, batch) -> None:  # type: ignore[no-untyped-def]
    models = [teacher(build(seed=seed)) for seed in (3, 4)]
    inputs = tuple(torch.from_numpy(a).long() for a in (batch.source, batch.source_lengths, batch.target))
    real = torch.arange(inputs[2].shape[1]) < torch.from_numpy(batch.target_lengths)[:, None]
    one, two, both = (mean_probabilities(t, (*inputs, real), 2.0) for t in (models[:1], models[1:], models))
    assert not torch.allclose(one, two)
    torch.testing.assert_close(both, (one + two) / 2)
    torch.testing.assert_close(both.sum(-1), torch.ones(len(both)))


# --- opening --------------------------------------------------------------------------------------------------------


def bundle(path: Path, model: Any, vocabularies: dict[str, Any]) -> Path:
    of = family("transformer")
    state = model.state_dict()
    arrays = (state[entry.name].numpy() for entry in storages(of, model.config))
    write_bundle(path, of, model.config, arrays, vocabularies, {})
    return path


def test_a_teacher_is_opened_as_it_was_written(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = build(seed=4)
    paths = [bundle(tmp_path / name, model, SIDES) for name in ("one", "two")]
    first, second = open_teachers(Distillation(teachers=tuple(map(str, paths))), SIDES, CPU)
    assert all(torch.equal(a, b) for a, b in zip(first.module.parameters(), model.parameters(), strict=True))
    assert not first.module.training
    assert first.fingerprint == second.fingerprint == teacher(model).fingerprint
    assert first.fingerprint != teacher(build(seed=5)).fingerprint


def test_a_marian_model_is_the_same_teacher_as_its_bundle(fixtures: Path, tmp_path: Path) -> None:
    marian = fixtures / "fixtures/marian-ar-en-translit"
    api.convert(marian, tmp_path / "bundle", "warmstart")
    vocabularies = open_model(marian).vocabularies
    names = (str(marian), str(tmp_path / "bundle"))
    first, second = open_teachers(Distillation(teachers=names), vocabularies, CPU)
    assert first.fingerprint == second.fingerprint


def test_other_vocabularies_are_one_error_before_weights_are_read(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shifted = CharacterVocabulary.train(["bcdefghij"])
    right = bundle(tmp_path / "right", build(), SIDES)
    wrong = bundle(tmp_path / "wrong", build(), {"source": LETTERS, "target": shifted})
    other = bundle(tmp_path / "other", build(), {"source": shifted, "target": shifted})
    for path in (right, wrong, other):
        weights = path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\xff\xff\xff\xff")
    with pytest.raises(VocabularyError) as caught:
        open_teachers(Distillation(teachers=(str(right), str(wrong), str(other))), SIDES, CPU)
    assert [(p.where, p.what.split()[-2]) for p in caught.value.problems] == [
        (str(wrong), "target"),
        (str(other), "source"),
        (str(other), "target"),
    ]
    assert "first difference in row 2 ('a' and 'b')" in str(caught.value)


# --- sequence level -------------------------------------------------------------------------------------------------


def make_split(examples: int = 10) -> EncodedSplit:
    random = np.random.default_rng(0)
    sources = [[*random.integers(1, 11, random.integers(1, 6)), 0] for _ in range(examples)]
    offsets = np.cumsum([0, *map(len, sources)])
    targets = np.tile(np.array([5, 0], np.int32), examples)
    return EncodedSplit(
        np.concatenate(sources).astype(np.int32),
        offsets.astype(np.int64),
        targets,
        np.arange(examples + 1, dtype=np.int64) * 2,
        Counts(examples, 1, 2, sum(1 in source for source in sources)),
        (LETTERS.fingerprint, LETTERS.fingerprint),
    )


def rows(split: EncodedSplit, side: str) -> list[list[int]]:
    values, offsets = getattr(split, side), getattr(split, f"{side}_offsets")
    return [values[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@pytest.fixture
def talkative(build):  # type: ignore[no-untyped-def]
    """Makes models that say something: random weights alone mostly repeat one token until they are cut."""

    def make(seed: int) -> Teacher:
        model = build(seed=seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0)
            model.decoder.output.bias[0] = 1.0
        return teacher(model)

    return make


def distil(cache: Path, teachers: list[Teacher], **options: Any) -> EncodedSplit:
    config = Distillation(teachers=("t",), level="sequence", beam_size=3)
    options = {"max_length": 100, "progress": False} | options
    return distilled_split(options.pop("split", make_split()), teachers, config, SIDES, cache, **options)


def test_targets_are_the_ensembles_translations(talkative, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    teachers, split = [talkative(1), talkative(2)], make_split()
    config = SearchConfig(beam_size=3, normalize=1.0)
    scorers = [TransformerScorer(t.module) for t in teachers]
    found = translate_ids(scorers, rows(split, "source"), config, eos_id=0, unk_id=1)
    expected = [[*best[0].ids, 0] for best in found]
    result = distil(tmp_path, teachers)
    kept = [k for k, target in enumerate(expected) if len(target) > 1]
    assert rows(result, "target") == [expected[k] for k in kept]
    assert rows(result, "source") == [rows(split, "source")[k] for k in kept]
    assert len({tuple(target) for target in expected}) > 3
    fingerprints = {split.fingerprint, result.fingerprint, *(distil(tmp_path, [t]).fingerprint for t in teachers)}
    assert len(fingerprints) == 4


def test_empty_and_long_outputs_are_dropped_and_counted(talkative, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    split, teachers = make_split(40), [talkative(1)]
    outputs = [tuple(range(2, 2 + k % 7)) for k in range(40)]  # of 0 to 6 tokens
    monkeypatch.setattr(
        distillation, "translate_ids", lambda *_, **__: [[Hypothesis(ids, 0.0, 0.0, ())] for ids in outputs]
    )
    result = distil(tmp_path, teachers, split=split, max_length=5)
    kept = [k for k in range(40) if 1 <= k % 7 <= 4]
    assert rows(result, "target") == [[*outputs[k], 0] for k in kept]
    assert rows(result, "source") == [rows(split, "source")[k] for k in kept]
    unknown = sum(1 in source for source in rows(result, "source"))
    assert 0 < unknown < split.counts.unknown_source
    assert result.counts == Counts(len(kept), 1 + 6, 2 + 5 + 5, unknown)
    with pytest.raises(DataError, match="6 empty and 34 longer than 1 tokens"):
        distil(tmp_path, teachers, split=split, max_length=1)


def test_a_stopped_decoding_goes_on_where_it_was(talkative, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(distillation, "CHUNK", 3)
    teachers, decoded = [talkative(1)], []

    def counting(scorers: Any, sources: Any, *args: Any, **options: Any) -> Any:
        if len(decoded) == fails_after:
            raise KeyboardInterrupt
        decoded.append(len(sources))
        return translate_ids(scorers, sources, *args, **options)

    monkeypatch.setattr(distillation, "translate_ids", counting)
    fails_after = 99
    whole = distil(tmp_path / "whole", teachers)
    assert decoded == [3, 3, 3, 1]
    decoded.clear()
    fails_after = 2
    with pytest.raises(KeyboardInterrupt):
        distil(tmp_path / "stopped", teachers)
    fails_after = 99
    assert distil(tmp_path / "stopped", teachers).fingerprint == whole.fingerprint
    assert decoded == [3, 3, 3, 1]  # nothing twice
    distil(tmp_path / "stopped", teachers)
    assert len(decoded) == 4  # and a finished one is only read
    distil(tmp_path / "stopped", [talkative(2)])
    assert len(decoded) == 8  # by another teacher it is another one


SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_distillation as t
from warmstart.training import distillation
distillation.CHUNK = 2
real = distillation.translate_ids
def slow(*args, **options):
    time.sleep(0.05)
    return real(*args, **options)
distillation.translate_ids = slow
teachers = t.open_teachers(t.Distillation(teachers=(sys.argv[3],)), t.SIDES, t.CPU)
t.distil(Path(sys.argv[2]), teachers, split=t.make_split(200))
"""


def test_a_killed_decoding_ends_as_one_that_was_not(talkative, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(distillation, "CHUNK", 2)
    path = bundle(tmp_path / "teacher", talkative(1).module, SIDES)
    teachers = list(open_teachers(Distillation(teachers=(str(path),)), SIDES, CPU))
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", SLOW, str(Path(__file__).parent), str(killed), str(path)]
    with subprocess.Popen(command) as process:
        end = time.monotonic() + 60
        while len(list(killed.rglob("*.safetensors"))) < 5:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.003)
        process.send_signal(signal.SIGKILL)
    written = {p: p.stat().st_mtime_ns for p in killed.rglob("0*.safetensors")}
    assert 5 <= len(written) < 100
    split = make_split(200)
    whole = distil(tmp_path / "whole", teachers, split=split)
    assert distil(killed, teachers, split=split).fingerprint == whole.fingerprint
    assert {p: p.stat().st_mtime_ns for p in written} == written
