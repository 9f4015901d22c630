"""The LSTM over rows of time, and the clipped layers, beside torch's own."""

from __future__ import annotations

import torch
from torch import nn

from warmstart.models.deepspeech.lstm_torch import Frames, recur
from warmstart.models.deepspeech.module import clipped
from warmstart.models.layers.dropout import Noise

LENGTHS = torch.tensor([3, 6, 1, 6, 4])


def test_rows_and_places_belong_to_each_other() -> None:
    frames = Frames(LENGTHS, 7)
    values = torch.randn(5, 7, 2)
    laid = frames.lay_out(torch.cat([frames.take(values), torch.full((1, 2), 9.0)]))
    for b, length in enumerate(LENGTHS.tolist()):
        assert (laid[b, :length] == values[b, :length]).all()
        assert (laid[b, length:] == 9).all()
    assert frames.sizes == [5, 4, 4, 3, 2, 2]


def test_outputs_and_gradients_are_those_of_packed_sequences() -> None:
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
    frames = Frames(LENGTHS, 7)
    found = frames.lay_out(nn.functional.pad(recur(frames.take(x), weight, bias, frames.sizes), (0, 0, 0, 1)))
    (found * factors).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(x.grad, gradient)
    torch.testing.assert_close(weight.grad, torch.cat([peer.weight_ih_l0.grad, peer.weight_hh_l0.grad], 1))
    torch.testing.assert_close(bias.grad, peer.bias_ih_l0.grad)


def test_clipping_with_dropout_is_done_in_one() -> None:
    x = (30 * torch.randn(1000, 40)).requires_grad_()
    torch.manual_seed(3)
    y = clipped(x * 1.0, 20.0, 0.25, Noise())
    y.sum().backward()
    torch.manual_seed(3)
    kept = Noise().kept(x.shape, 0.25) / 0.75
    torch.testing.assert_close(y, x.clamp(0.0, 20.0) * kept)
    inside = (x > 0) & (x < 20)
    torch.testing.assert_close(x.grad, inside * kept)
