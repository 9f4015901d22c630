"""Objective, optimizer and precision, each against its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from warmstart.errors import TrainingError
from warmstart.training.config import Adam
from warmstart.training.objective import batch_loss, smoothed_cross_entropy
from warmstart.training.optimizer import build_optimizer, dump_slots, dump_steps, load_slots, trainable
from warmstart.training.precision import cpu_flags, resolve


def test_label_smoothing_closed_form() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
    targets = np.array([0, 2])
    nll = -np.log([0.7, 0.5]).sum()
    expected = 0.9 * nll + 0.1 * -np.log(p).mean(1).sum()
    logits = torch.log(torch.tensor(p)) + 3.0  # a constant changes nothing
    loss, plain = smoothed_cross_entropy(logits, torch.tensor(targets), 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert plain.item() == pytest.approx(nll, rel=1e-6)


def test_loss_and_gradient_equal_torchs() -> None:
    logits = torch.randn(7, 5, requires_grad=True)
    targets = torch.randint(0, 5, (7,))
    reference = torch.nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.2)
    ours, _ = smoothed_cross_entropy(logits, targets, 0.2)
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(reference, logits))


def test_padding_counts_for_nothing(build, batch) -> None:  # type: ignore[no-untyped-def]
    model = build(dropout=0.0)
    before = batch_loss(model, batch, 0.1)
    for row, length in zip(batch.target, batch.target_lengths, strict=True):
        row[length:] = 5
    after = batch_loss(model, batch, 0.1)
    assert before.tokens == after.tokens == batch.target_lengths.sum()
    torch.testing.assert_close(before.loss, after.loss)


def _updated(model, batches, optimizer):  # type: ignore[no-untyped-def]
    optimizer.param_groups[0]["lr"] = 0.01
    for batch in batches:
        optimizer.zero_grad()
        batch_loss(model, batch, 0.1).loss.backward()
        optimizer.step()


def test_slots_round_trip_bit_equal_and_carry_on(build, batch) -> None:  # type: ignore[no-untyped-def]
    model, copy = build(dropout=0.0), build(dropout=0.0)
    optimizer, other = build_optimizer(model, Adam()), build_optimizer(copy, Adam())
    _updated(model, [batch] * 3, optimizer)
    slots = dump_slots(optimizer, model)
    assert len(slots) == 2 * len(trainable(model))
    copy.load_state_dict(model.state_dict())
    load_slots(other, copy, slots, 3)
    again = dump_slots(other, copy)
    assert all(np.array_equal(slots[key].view(np.int32), again[key].view(np.int32)) for key in slots)
    assert set(dump_steps(other, copy).values()) == {3}
    _updated(model, [batch], optimizer)
    _updated(copy, [batch], other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))


def test_slots_may_use_any_name_of_a_tie_and_may_be_partial(build) -> None:  # type: ignore[no-untyped-def]
    model = build()
    optimizer = build_optimizer(model, Adam())
    moment = np.full((11, 8), 0.5, np.float32)
    load_slots(optimizer, model, {("decoder.embedding.weight", s): moment for s in "mv"}, 7)
    assert dump_steps(optimizer, model) == {"encoder.embedding.weight": 7}


def test_every_bad_slot_is_reported_and_nothing_changes(build) -> None:  # type: ignore[no-untyped-def]
    model = build()
    optimizer = build_optimizer(model, Adam())
    right, name = np.zeros((11, 8), np.float32), "encoder.embedding.weight"
    wrong = {
        (name, "m"): right.T,
        ("nowhere", "m"): right,
        (name, "v"): right,
        ("decoder.embedding.weight", "v"): right,
    }
    with pytest.raises(TrainingError) as caught:
        load_slots(optimizer, model, wrong, 1)
    text = str(caught.value)
    assert "(8, 11)" in text
    assert "m of nowhere" in text
    assert "given twice" in text
    assert dump_slots(optimizer, model) == {}


def test_weight_decay_spares_vectors(build) -> None:  # type: ignore[no-untyped-def]
    model = build()
    optimizer = build_optimizer(model, Adam(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decay[id(p)] == (0.1 if p.ndim > 1 else 0.0) for p in model.parameters())


def test_precision_follows_the_processor(tmp_path: Path) -> None:
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nflags\t\t: sse avx512_bf16\n")
    cpu = torch.device("cpu")
    assert resolve("auto", cpu, cpu_flags(listed)) == ("bfloat16", "the processor has avx512_bf16")
    assert resolve("auto", cpu, ("avx2",)) == ("float32", "the processor has no bfloat16")
    assert resolve("float32", cpu, ("amx_bf16",))[0] == "float32"
    assert cpu_flags(tmp_path / "none") == ()
