"""The LSTM over rows of time, and the clipped layers, beside torch's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from warmstart.models.deepspeech import lstm_torch, whole_torch
from warmstart.models.deepspeech.clipped_torch import clipped
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.lstm_torch import Frames, Grid, recur
from warmstart.models.deepspeech.module import DeepSpeech
from warmstart.models.layers.dropout import Noise

LENGTHS = torch.tensor([3, 6, 1, 6, 4])


def taken(values: torch.Tensor, frames: Frames) -> torch.Tensor:
    """The rows of ``values`` [B, T, …], and zeros after them."""
    rows = values.flatten(0, 1)[torch.from_numpy(frames.place)]
    return torch.cat([rows[: frames.count], torch.zeros_like(rows[frames.count :])])


def test_rows_and_places_belong_to_each_other() -> None:
    frames = Frames(LENGTHS, 7)
    values = torch.randn(5, 7, 2)
    rows = taken(values, frames)
    rows[frames.count :] = 9.0
    laid = frames.filled(rows)
    for b, length in enumerate(LENGTHS.tolist()):
        assert (laid[b, :length] == values[b, :length]).all()
        assert (laid[b, length:] == 9).all()
    assert frames.sizes == [5, 4, 4, 3, 2, 2]


def test_a_grid_has_the_padding_and_only_bfloat16_has_fill_rows() -> None:
    grid = Grid(LENGTHS, 7, rounded=True)
    values = torch.randn(5, 7, 2)
    rows = values.flatten(0, 1)[grid.windows(0)]
    assert (grid.count, len(rows)) == (35, 64)
    torch.testing.assert_close(grid.filled(rows), values)
    torch.testing.assert_close(grid.lay_out(rows), values.transpose(0, 1))
    exact = grid.rows(rows, torch.float32)
    torch.testing.assert_close(exact, rows[:35])
    low = grid.rows(exact, torch.bfloat16)
    torch.testing.assert_close(low, torch.cat([exact, torch.zeros(29, 2)]).bfloat16())
    masked = grid.masked(grid.lay_out(rows)).transpose(0, 1)
    for b, length in enumerate(LENGTHS.tolist()):
        assert (masked[b, :length] == values[b, :length]).all()
        assert (masked[b, length:] == 0).all()
    assert Grid(torch.tensor([7, 7]), 7).real is None


def test_rows_are_rounded_up_and_at_least_one_is_no_frame() -> None:
    assert [len(Frames(LENGTHS, 7, rounded=rounded).place) for rounded in (False, True)] == [21, 32]
    assert len(Frames(torch.full((8,), 4), 4, rounded=True).place) == 64


def test_what_came_before() -> None:
    frames = Frames(LENGTHS, 7, rounded=True)
    values = torch.randn(7, 5, 2)
    expected = nn.functional.pad(values, (0, 0, 0, 0, 1, 0))[:-1]
    rows = frames.previous(taken(values.transpose(0, 1), frames))
    torch.testing.assert_close(rows[: frames.count], taken(expected.transpose(0, 1), frames)[: frames.count])
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
    found = frames.filled(recur(taken(x, frames), weight, bias, frames))
    (found * factors).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(x.grad, gradient)
    torch.testing.assert_close(weight.grad, torch.cat([peer.weight_ih_l0.grad, peer.weight_hh_l0.grad], 1))
    torch.testing.assert_close(bias.grad, peer.bias_ih_l0.grad)


def test_many_recurrent_weights_are_multiplied_in_the_type_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(64, 32).requires_grad_(), torch.randn(64).requires_grad_()
    frames = Frames(LENGTHS, 7)
    x = taken(torch.randn(5, 7, 16).bfloat16(), frames).requires_grad_()
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


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("batch", [4, 120, 1000])
def test_large_batches_are_computed_in_bfloat16_and_small_ones_are_not(batch: int, layer_norm: bool) -> None:
    torch.manual_seed(0)
    model = DeepSpeech(DeepSpeechConfig(vocab_size=5, n_hidden=32, n_input=4, n_context=1, layer_norm=layer_norm))
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


def model_of(units: int, **changes: Any) -> DeepSpeech:
    torch.manual_seed(0)
    rates = {f"dropout_{n}": 0.25 for n in (1, 2, 3, 5)}
    config = {"vocab_size": 5, "n_hidden": units, "n_input": 4, "n_context": 1, "relu_clip": 0.6, **rates, **changes}
    model = DeepSpeech(DeepSpeechConfig(**config)).train()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5 if parameter.ndim == 1 else parameter.shape[1] ** -0.5)
    return model


def gradients(
    model: DeepSpeech, features: torch.Tensor, lengths: torch.Tensor, *, low: bool = False
) -> list[torch.Tensor]:
    """The logits of real frames and the gradients of their mean square, with random numbers of one seed."""
    torch.manual_seed(1)
    features = features.masked_fill(torch.arange(features.shape[1])[:, None] >= lengths[:, None, None], 0.0)
    real = torch.arange(features.shape[1])[:, None] < lengths
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
        whole = model.whole(features, lengths)
        logits = model(features, lengths).transpose(0, 1)[real] if whole is None else whole.logits[real]
    if whole is None:
        return [logits, *torch.autograd.grad(logits.square().mean(), trained)]
    gradient = torch.zeros_like(whole.logits)
    gradient[real] = 2 * logits / logits.numel()
    whole.backward(gradient)
    found = [logits, *(p.grad for p in trained)]
    model.zero_grad()
    return found


@pytest.mark.parametrize("changes", [{}, {"dropout_2": 0.0, "dropout_5": 0.5}], ids=str)
@pytest.mark.parametrize("frozen", [(), ("layer_1",), ("layer_1", "layer_2", "layer_3", "lstm"), ("lstm", "layer_5")])
def test_the_whole_network_without_autograd_is_what_autograd_makes_of_it(
    changes: dict[str, float], frozen: tuple[str, ...]
) -> None:
    model = model_of(8, **changes)
    for stage in frozen:
        model.get_submodule(stage).requires_grad_(False)
    exact = copy.deepcopy(model).double()
    assert (whole_torch.is_possible(model), whole_torch.is_possible(exact)) == (True, False)
    features, lengths = torch.randn(5, 7, 4), LENGTHS
    found = gradients(model, features, lengths)
    for value, expected in zip(found, gradients(exact, features.double(), lengths), strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("units", [64, 100, 500, 1024])
def test_bfloat16_of_the_whole_network_is_near_float32(units: int) -> None:
    """Also where oneDNN's own gradients are wrong."""
    model = model_of(units, relu_clip=20.0)
    features, lengths = torch.randn(3, 100, 4), torch.tensor([100, 100, 91])
    exact = gradients(model, features, lengths)
    found = gradients(model, features, lengths, low=True)
    assert not torch.equal(found[0], exact[0])
    for value, expected in zip(found, exact, strict=True):
        assert (value - expected).norm() < 0.05 * expected.norm()


class Scaled(nn.Module):
    """An adapted weight: what the layer has is computed from what is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.scale


def test_adapted_weights_get_gradients_without_autograd_too() -> None:
    model = model_of(8)
    for layer in (model.layer_2, model.lstm, model.layer_6):
        parametrize.register_parametrization(layer, "weight", Scaled())
    exact = copy.deepcopy(model).double()
    features = torch.randn(5, 7, 4)
    found = gradients(model, features, LENGTHS)
    for value, expected in zip(found, gradients(exact, features.double(), LENGTHS), strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)


def test_gradients_without_autograd_are_tensors_as_any() -> None:
    """They add up, may be changed in place, and are their owner's for good."""
    model = model_of(8, **{f"dropout_{n}": 0.0 for n in (1, 2, 3, 5)})
    features, lengths = torch.randn(2, 7, 4), torch.tensor([7, 7])

    def learn() -> list[torch.Tensor]:
        whole = model.whole(features, lengths)
        assert whole is not None
        whole.backward(torch.ones_like(whole.logits))
        return [p.grad for p in model.parameters() if p.grad is not None]

    first = learn()
    once = [gradient.clone() for gradient in first]
    assert not any(gradient.is_inference() or gradient.requires_grad for gradient in first)
    for gradient, value in zip(learn(), once, strict=True):
        torch.testing.assert_close(gradient, 2 * value)
    model.zero_grad()
    for gradient in first:
        gradient.fill_(7.0)
    for gradient, value in zip(learn(), once, strict=True):
        assert torch.equal(gradient, value)
    assert all((gradient == 7.0).all() for gradient in first)
