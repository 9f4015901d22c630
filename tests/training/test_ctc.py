"""The objective of speech against the definition of CTC: the sum over all paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import groupby, product
from typing import Any

import numpy as np
import pytest
import torch

from warmstart.data.speech.batches import SpeechBatch
from warmstart.inference.recognition import best_paths, ctc_losses, log_probabilities, recognise
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.module import DeepSpeech
from warmstart.training.ctc import CTC
from warmstart.training.denormals import flushed_denormals

BLANK = 3  # the last of four


def make_batch(frames: Sequence[int], transcripts: Sequence[Sequence[int]], seed: int = 0) -> SpeechBatch:
    """Features are the logits themselves, with noise behind the end of each row."""
    random = np.random.default_rng(seed)
    features = random.standard_normal((len(frames), max(frames), BLANK + 1)).astype(np.float32)
    labels = np.zeros((len(frames), max(map(len, transcripts))), np.int32)
    for row, transcript in zip(labels, transcripts, strict=True):
        row[: len(transcript)] = transcript
    lengths = np.array([*map(len, transcripts)], np.int32)
    rows = np.arange(len(frames))
    return SpeechBatch(features, np.array(frames, np.int32), labels, lengths, np.zeros_like(rows), rows)


def part(batch: SpeechBatch, rows: list[int]) -> SpeechBatch:
    return SpeechBatch(*(getattr(batch, field.name)[rows] for field in fields(batch)))


class Logits(torch.nn.Module):
    """Gives its input, times one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return features * self.scale


def collapsed(path: Sequence[int]) -> tuple[int, ...]:
    return tuple(label for label, _ in groupby(path) if label != BLANK)


def minus_log_probability(logits: np.ndarray, transcript: Sequence[int]) -> float:
    """By going through every path there is."""
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    paths = product(range(BLANK + 1), repeat=len(logits))
    found = [log_probs[range(len(path)), path].sum() for path in paths if collapsed(path) == tuple(transcript)]
    return float(-np.logaddexp.reduce(found)) if found else np.inf


def test_losses_are_those_of_all_paths() -> None:
    frames, transcripts = [5, 3, 4, 2], [[0, 1], [2], [1, 1], [1, 1]]
    batch = make_batch(frames, transcripts)
    rows = zip(batch.features, frames, transcripts, strict=True)
    expected = [minus_log_probability(logits[:n], transcript) for logits, n, transcript in rows]
    assert expected[3] == np.inf  # two frames cannot say a label twice
    np.testing.assert_allclose(ctc_losses(torch.as_tensor(batch.features), batch), expected, rtol=1e-5)


def test_greedy_outputs_are_those_of_the_likeliest_path() -> None:
    batch = make_batch([5, 3, 4], [[0], [0], [0]], seed=3)
    rows = [batch.features[i, :n] for i, n in enumerate(batch.feature_lengths)]
    expected = [list(collapsed(row.argmax(-1).tolist())) for row in rows]
    assert best_paths(torch.as_tensor(batch.features), batch) == expected
    own = log_probabilities(torch.as_tensor(batch.features), batch)
    assert [len(row) for row in own] == [5, 3, 4]
    assert all(np.allclose(np.exp(row).sum(-1), 1.0, atol=1e-6) for row in own)


def test_outputs_are_in_the_order_of_the_split_whatever_the_batches() -> None:
    batch = make_batch([5, 3, 4], [[0, 1], [2], [1]], seed=3)
    halves = [part(batch, [2, 0]), part(batch, [1])]
    whole, apart = (recognise(Logits(), batches, 3) for batches in ([batch], halves))
    assert whole.outputs == apart.outputs
    np.testing.assert_allclose(whole.losses, apart.losses, rtol=1e-6)
    shouted = recognise(Logits(), [batch], 3, decode=lambda log_probs: [len(log_probs)])
    assert shouted.outputs == [[5], [3], [4]]


@pytest.mark.parametrize(("normalizer", "divisor"), [(None, 3), ("sequences", 3), ("tokens", 4), (7.5, 7.5)])
def test_accumulated_batches_equal_the_large_one(config: Any, normalizer: Any, divisor: float) -> None:
    batch = make_batch([5, 3, 4], [[0, 1], [2], [1]])
    parts = [part(batch, [0, 1]), part(batch, [2])]
    objective = CTC(config.model_copy(update={"loss_normalizer": normalizer}), 0.02)
    assert objective.divisor(objective.weight(batch)) == divisor
    assert objective.divisor(sum(map(objective.weight, parts))) == divisor
    assert sum(map(objective.amount, parts)) == pytest.approx(12 * 0.02)
    model = Logits()
    whole = objective(model, batch)
    assert whole.units == 3
    losses = [objective(model, half).loss for half in parts]
    torch.testing.assert_close(sum(losses), whole.loss)
    (gradient,) = torch.autograd.grad(whole.loss, model.scale)
    pieces = [torch.autograd.grad(loss, model.scale)[0] for loss in losses]
    torch.testing.assert_close(sum(pieces), gradient)


@pytest.mark.parametrize("frozen", [(), ("layer_1", "lstm")])
def test_gradients_of_two_batches_are_those_of_autograd(
    config: Any, frozen: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network that has a pass of its own, and of the same without it."""
    torch.manual_seed(0)
    model = DeepSpeech(DeepSpeechConfig(vocab_size=BLANK + 1, n_hidden=8, n_input=BLANK + 1, n_context=1)).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for stage in frozen:
        model.get_submodule(stage).requires_grad_(False)
    batches = [make_batch([5, 3, 4], [[0, 1], [2], [1]]), make_batch([6, 2], [[0, 1], [2]], seed=1)]
    for batch in batches:
        for row, length in zip(batch.features, batch.feature_lengths, strict=True):
            row[length:] = 0.0
    objective, found = CTC(config, 0.02), {}
    for own in (True, False):
        if not own:
            monkeypatch.setattr(DeepSpeech, "whole", lambda *arguments: None)
        model.zero_grad()
        torch.manual_seed(1)
        losses = [objective(model, batch) for batch in batches]
        for loss in losses:
            loss.backward(7.0)
        assert [loss.without_autograd is not None for loss in losses] == [own] * 2
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        found[own] = [*(loss.loss.detach() for loss in losses), *(loss.rows for loss in losses), *gradients]
    torch.testing.assert_close(found[True], found[False], rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_denormals_are_flushed_inside_and_nowhere_else() -> None:
    tiny = torch.tensor([1e-39])
    with flushed_denormals():
        assert float(tiny * 1.0) == 0.0
        with flushed_denormals():
            pass
        assert float(tiny * 1.0) == 0.0
    assert float(tiny * 1.0) > 0.0
