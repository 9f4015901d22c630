"""The LSTM over rows of time, and the clipped layers, beside torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from warmstart.models.deepspeech import lstm_torch
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.lstm_torch import Frames, recur
from warmstart.models.deepspeech.module import DeepSpeech, clipped
from warmstart.models.layers.dropout import Noise

LENGTHS = torch.tensor([3, 6, 1, 6, 4])


def test_rows_and_places_belong_to_each_other() -> None:
    frames = Frames(LENGTHS, 7)
    values = torch.randn(5, 7, 2)
    rows = frames.take(values.transpose(0, 1))
    rows[frames.count :] = 9.0
    laid = frames.filled(rows)
    for b, length in enumerate(LENGTHS.tolist()):
        assert (laid[b, :length] == values[b, :length]).all()
        assert (laid[b, length:] == 9).all()
    assert frames.sizes == [5, 4, 4, 3, 2, 2]


def test_moving_rows_there_and_back_leaves_zeros_elsewhere_in_values_and_gradients() -> None:
    frames = Frames(LENGTHS, 7, rounded=True)
    real = torch.arange(7)[:, None] < LENGTHS
    values = torch.randn(7, 5, 2, dtype=torch.double, requires_grad=True)
    rows = frames.take(values)
    assert (rows[frames.count :] == 0).all()
    torch.testing.assert_close(frames.lay_out(rows), values * real[:, :, None])
    assert torch.autograd.gradcheck(frames.take, values)
    assert torch.autograd.gradcheck(frames.lay_out, rows.detach().requires_grad_())


def test_rows_are_rounded_up_and_at_least_one_is_no_frame() -> None:
    assert [len(Frames(LENGTHS, 7, rounded=rounded).place) for rounded in (False, True)] == [21, 32]
    assert len(Frames(torch.full((8,), 4), 4, rounded=True).place) == 64


def test_what_came_before() -> None:
    frames = Frames(LENGTHS, 7, rounded=True)
    values = torch.randn(7, 5, 2)
    expected = nn.functional.pad(values, (0, 0, 0, 0, 1, 0))[:-1]
    rows = frames.previous(frames.take(values))
    torch.testing.assert_close(rows[: frames.count], frames.take(expected)[: frames.count])
    assert (rows[frames.count :] == 0).all()


@pytest.mark.parametrize("rounded", [False, True])
def test_outputs_and_gradients_are_those_of_packed_sequences(rounded: bool) -> None:
    torch.manual_seed(0)
    peer = nn.LSTM(4, 4, batch_first=True).double()
    weight = torch.cat([peer.weight_ih_l0, peer.weight_hh_l0], 1).detach().requires_grad_()
    bias = (peer.bias_ih_l0 + peer.bias_hh_l0).detach().requires_grad_()
    x = torch.randn(5, 7, 4, dtype=torch.double, requires_grad=True)
    packed = nn.utils.rnn.pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(peer(packed)[0], batch_first=True, total_length=7)
    factors = torch.randn_like(expected)
    (expected * factors).sum().backward()
    gradient, x.grad = x.grad, None
    frames = Frames(LENGTHS, 7, rounded=rounded)
    found = frames.lay_out(recur(frames.take(x.transpose(0, 1)), weight, bias, frames)).transpose(0, 1)
    (found * factors).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(x.grad, gradient)
    torch.testing.assert_close(weight.grad, torch.cat([peer.weight_ih_l0.grad, peer.weight_hh_l0.grad], 1))
    torch.testing.assert_close(bias.grad, peer.bias_ih_l0.grad)


def test_many_recurrent_weights_are_multiplied_in_the_type_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(64, 32).requires_grad_(), torch.randn(64).requires_grad_()
    frames = Frames(LENGTHS, 7)
    x = frames.take(torch.randn(7, 5, 16).bfloat16()).requires_grad_()
    factors = torch.randn(len(x), 16)
    results = {}
    for limit in (2**20, 0):
        monkeypatch.setattr(lstm_torch, "LOW_FROM", limit)
        said = recur(x, weight, bias, frames)
        results[limit] = [said, *torch.autograd.grad((said * factors).sum(), (x, weight, bias))]
    for exact, found in zip(*results.values(), strict=True):
        assert found.dtype == exact.dtype
        assert 0 < (found - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_clipped_layer_with_dropout_is_done_in_one(dtype: torch.dtype) -> None:
    layer = nn.Linear(8, 40)
    x = (60 * torch.randn(1000, 8)).to(dtype).requires_grad_()
    torch.manual_seed(3)
    y = clipped(x, layer.weight, layer.bias, 20.0, 0.25, Noise())
    y.sum().backward()
    found = [t.grad for t in (x, layer.weight, layer.bias)]
    torch.manual_seed(3)
    kept = Noise().kept(y.shape, 0.25) / 0.75
    x.grad = layer.weight.grad = layer.bias.grad = None
    product = nn.functional.linear(x, layer.weight.to(dtype), layer.bias.to(dtype))
    expected = nn.functional.hardtanh(product, 0.0, 20.0) * kept.to(dtype)
    expected.sum().backward()
    assert [y.dtype, *(g.dtype for g in found)] == [dtype, dtype, torch.float32, torch.float32]
    assert (product > 20).any()
    torch.testing.assert_close(y, expected)
    for gradient, tensor in zip(found, (x, layer.weight, layer.bias), strict=True):
        assert (gradient - tensor.grad).norm() < 2 * torch.finfo(dtype).eps * tensor.grad.norm()


@pytest.mark.parametrize("batch", [4, 120, 1000])
def test_large_batches_are_computed_in_bfloat16_and_small_ones_are_not(batch: int) -> None:
    torch.manual_seed(0)
    model = DeepSpeech(DeepSpeechConfig(vocab_size=5, n_hidden=32, n_input=4, n_context=1))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.2, 0.2)
    features, lengths = torch.randn(batch, 10, 4), torch.randint(5, 11, (batch,))
    torch.manual_seed(1)
    exact = model.train()(features, lengths)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(features, lengths)
    assert found.dtype == torch.float32
    assert torch.equal(found, exact) == (batch == 4)
    exact_gradient, gradient = (torch.autograd.grad(y.square().mean(), model.lstm.weight)[0] for y in (exact, found))
    assert (gradient - exact_gradient).norm() < 0.02 * exact_gradient.norm()
