"""The layers' own functions against the plain formulas, differentiated by torch."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.models.layers import attention
from warmstart.models.layers.attention import attend
from warmstart.models.layers.dropout import Noise, add_dropout, dropout, keep_probability
from warmstart.models.layers.linear import linear
from warmstart.models.layers.rows import Rows, round_number
from warmstart.models.layers.seeds import Seed

LENGTHS, OTHERS = torch.tensor([3, 1, 4]), torch.tensor([2, 5, 1])
HEADS, WIDTH = 2, 3


def noise(seed: int) -> Noise:
    torch.manual_seed(seed)
    return Noise()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounded", [False, True])
def test_rows_are_the_real_tokens_in_order(rounded: bool) -> None:
    rows = Rows(LENGTHS, 5, rounded=rounded)
    values = torch.arange(15).view(3, 5)
    assert (rows.count, rows.total) == (8, 32 if rounded else 9)
    assert rows.take(values)[:8].tolist() == [0, 1, 2, 5, 10, 11, 12, 13]
    assert rows.step[:8].tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert rows.lay_out(rows.take(values))[rows.real].tolist() == values[rows.real].tolist()


def test_there_is_always_a_fill_row_and_never_many() -> None:
    for count in (1, 31, 32, 33, 1000, 4096, 50_000):
        total = Rows(torch.tensor([count]), count, rounded=True).total
        assert total > count
        assert total % 32 == 0
        assert total - count <= max(32, count / 64)
    assert round_number(4096) == 64


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_heads_are_those_of_each_part_and_come_back(parts: int) -> None:
    rows = Rows(LENGTHS, 4)
    x = torch.randn(rows.total, parts * HEADS * WIDTH)
    heads = rows.spread(x, parts, HEADS)
    assert heads.shape == (parts, 3 * HEADS, 4, WIDTH)
    padded = rows.lay_out(x).view(3, 4, parts, HEADS, WIDTH)
    assert torch.equal(heads.view(parts, 3, HEADS, 4, WIDTH), padded.permute(2, 0, 3, 1, 4))
    back = rows.gather(heads)
    assert torch.equal(back[: rows.count], x[: rows.count])
    assert (back[rows.count :] == 0).all()


# --- linear ---------------------------------------------------------------------------------------------------------


def test_layers_beside_each_other_are_each_its_own() -> None:
    layers = [nn.Linear(5, n, bias=True).double() for n in (2, 3, 4)]
    x = normal(7, 5)
    parameters = [p for layer in layers for p in layer.parameters()]
    whole, plain = linear(x, *layers), torch.cat([layer(x) for layer in layers], 1)
    torch.testing.assert_close(whole, plain)
    upstream = torch.randn_like(whole)
    for ours, theirs in zip(
        torch.autograd.grad(whole, [x, *parameters], upstream),
        torch.autograd.grad(plain, [x, *parameters], upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_frozen_weights_get_no_gradient_and_cost_no_other() -> None:
    first, second = nn.Linear(3, 2, bias=False).double(), nn.Linear(3, 2, bias=False).double()
    first.weight.requires_grad_(False)
    x = torch.randn(4, 3, dtype=torch.float64)
    linear(x, first, second).sum().backward()
    assert first.weight.grad is None
    assert second.weight.grad is not None
    torch.testing.assert_close(second.weight.grad, x.sum(0).expand(2, 3))


@pytest.mark.parametrize("rows", [20, 64, 77])
def test_bfloat16_products_are_the_same_in_pieces(rows: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    x = torch.randn(rows, 16).bfloat16().requires_grad_()
    plain = functional.linear(x, layer.weight.bfloat16(), layer.bias.bfloat16())
    ours = linear(x, layer)
    torch.testing.assert_close(ours, plain)
    parameters = [x, layer.weight, layer.bias]
    for a, b in zip(
        torch.autograd.grad(ours.float().sum(), parameters),
        torch.autograd.grad(plain.float().sum(), parameters),
        strict=True,
    ):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.05)


@pytest.mark.parametrize(("dtype", "rows"), [(torch.float64, 7), (torch.bfloat16, 64), (torch.bfloat16, 77)])
@pytest.mark.parametrize(("inside", "outside"), [(16, 8), (8, 16)])
def test_the_positive_part_is_that_of_relu(dtype: torch.dtype, rows: int, inside: int, outside: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(inside, outside).to(torch.float64 if dtype == torch.float64 else torch.float32)
    x = torch.randn(rows, inside).to(dtype).requires_grad_()
    plain = functional.relu(functional.linear(x, layer.weight.to(dtype), layer.bias.to(dtype)))
    ours = linear(x, layer, relu=True)
    torch.testing.assert_close(ours, plain)
    assert (ours == 0).any()
    upstream, parameters = torch.randn(rows, outside).to(dtype), [x, layer.weight, layer.bias]
    for a, b in zip(
        torch.autograd.grad(ours, parameters, upstream), torch.autograd.grad(plain, parameters, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, **({} if dtype == torch.float64 else {"rtol": 0.02, "atol": 0.05}))


# --- attention ------------------------------------------------------------------------------------------------------


def plain_attention(q: Tensor, kv: Tensor, own: Rows, other: Rows, causal: bool) -> Tensor:
    """Sentence by sentence and head by head, without any padding."""
    out = []
    for b in range(own.size):
        mine = q[: own.count][own.place[: own.count] // own.width == b]
        theirs = kv[: other.count][other.place[: other.count] // other.width == b]
        keys, values = theirs.chunk(2, -1)
        heads = []
        for h in range(HEADS):
            s = slice(h * WIDTH, (h + 1) * WIDTH)
            scores = mine[:, s] @ keys[:, s].t() / math.sqrt(WIDTH)
            if causal:
                scores = scores + torch.full_like(scores, -math.inf).triu(1)
            heads.append(scores.softmax(-1) @ values[:, s])
        out.append(torch.cat(heads, -1))
    return torch.cat(out)


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
def test_attention_and_its_gradients(kind: str, long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LONG", 0 if long else 10**9)
    own = Rows(LENGTHS, 5)
    other = Rows(OTHERS, 5) if kind == "cross" else own
    size = HEADS * WIDTH
    q, kv = normal(own.total, size), normal(other.total, 2 * size)
    if kind == "cross":
        found = attend(q, kv, own, other, HEADS)
    else:
        found = attend(torch.cat([q, kv], 1), None, own, own, HEADS, causal=kind == "causal")
    plain = plain_attention(q, kv, own, other, kind == "causal")
    torch.testing.assert_close(found[: own.count], plain)
    upstream = torch.randn_like(plain)
    ours = torch.autograd.grad(found[: own.count], [q, kv], upstream)
    for a, b in zip(ours, torch.autograd.grad(plain, [q, kv], upstream), strict=True):
        torch.testing.assert_close(a, b)
    assert all((gradient[rows.count :] == 0).all() for gradient, rows in zip(ours, (own, other), strict=True))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_bfloat16_is_exact_to_its_rounding(causal: bool) -> None:
    torch.manual_seed(4)
    own = Rows(LENGTHS, 5, rounded=True)
    q, kv = torch.randn(own.total, HEADS * WIDTH), torch.randn(own.total, 2 * HEADS * WIDTH)
    rounded = [x.bfloat16().requires_grad_() for x in (q, kv)]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    found = attend(torch.cat(rounded, 1), None, own, own, HEADS, causal=causal)[: own.count]
    plain = plain_attention(exact[0], exact[1], own, own, causal)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), plain, rtol=0.02, atol=0.02)
    upstream = torch.randn_like(plain).bfloat16()
    ours = torch.autograd.grad(found, rounded, upstream)
    for a, b in zip(ours, torch.autograd.grad(plain, exact, upstream.double()), strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.double(), b, rtol=0.03, atol=0.06)


def test_attention_gradients_with_dropout_are_those_of_the_same_mask() -> None:
    own, other = Rows(LENGTHS, 4), Rows(OTHERS, 5)
    q, kv = normal(own.total, HEADS * WIDTH), normal(other.total, 2 * HEADS * WIDTH)

    def function(q: Tensor, kv: Tensor) -> Tensor:
        return attend(q, kv, own, other, HEADS, rate=0.4, noise=noise(3))[: own.count]

    assert not torch.allclose(function(q, kv), attend(q, kv, own, other, HEADS)[: own.count])
    assert torch.autograd.gradcheck(function, (q, kv))


def test_attention_weights_are_dropped_and_the_others_grow() -> None:
    """With values of one the output is the sum of the weights kept, divided by the probability to be kept: 1 in the
    mean, and not 1 alone."""
    rows = Rows(torch.full((64,), 9), 9)
    ones = torch.ones(rows.total, 2 * HEADS * WIDTH)
    found = attend(torch.zeros(rows.total, HEADS * WIDTH), ones, rows, rows, HEADS, rate=0.25, noise=noise(0))
    sums = found[: rows.count].view(rows.count, HEADS, WIDTH)
    assert (sums == sums[..., :1]).all()
    kept = sums[..., 0] * 9 * keep_probability(0.25)
    torch.testing.assert_close(kept, kept.round())
    assert abs(float(sums.mean()) - 1) < 0.02
    assert abs(float(kept.var()) - 9 * 0.25 * 0.75) < 0.3


# --- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.3, 0.5, 0.9])
def test_the_rate_is_honoured_and_the_mean_kept(rate: float) -> None:
    n = 1_000_000
    found = dropout(torch.ones(n), rate, noise(1))
    share = float((found == 0).float().mean())
    assert abs(share - rate) < 5 * math.sqrt(rate * (1 - rate) / n)
    assert abs(keep_probability(rate) - (1 - rate)) <= 1 / 131072
    assert float(found.max()) == pytest.approx(1 / keep_probability(rate), rel=1e-6)
    assert abs(float(found.mean()) - 1) < 5 * math.sqrt(rate / (1 - rate) / n)
    assert float(found.var()) == pytest.approx(rate / (1 - rate), rel=0.05)


def test_elements_are_independent() -> None:
    """No correlation between neighbours at any small distance, between rows, between draws or between seeds."""
    n = 1 << 20
    draws, other = noise(1), noise(2)
    first, second = (draws.kept((n,), 0.5).float() for _ in range(2))
    pairs = [(first[:-k], first[k:]) for k in (1, 2, 3, 4, 7, 8, 64, 256, 1024)]
    for a, b in [*pairs, (first, second), (first, other.kept((n,), 0.5).float())]:
        assert abs(float(torch.corrcoef(torch.stack((a, b)))[0, 1])) < 5 / math.sqrt(n)


def test_masks_are_a_function_of_torchs_seed_and_move_on() -> None:
    a, b = noise(7), noise(7)
    assert all(torch.equal(a.kept((9, 11), 0.5), b.kept((9, 11), 0.5)) for _ in range(3))
    torch.manual_seed(7)
    assert not torch.equal(Noise().kept((99,), 0.5), Noise().kept((99,), 0.5))


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_seeds_are_numpys(dtype: type[np.unsignedinteger[Any]]) -> None:
    edges = [0, 1, 2**32 - 1, 2**32, 2**63 - 2, 2**64 - 1]
    numbers = random.Random(1)
    for entropy in [*edges, *(numbers.getrandbits(64) for _ in range(500))]:
        for count in (1, 3, 11):
            expected = np.random.SeedSequence(entropy).generate_state(count, dtype)
            found = Seed(entropy).generate_state(count, dtype)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


def test_what_is_kept_changes_the_rate_of_impossible_rates_only() -> None:
    assert keep_probability(0.0) == 1.0
    assert noise(1).kept((5000,), 1e-9).all()
    assert 0 < keep_probability(1 - 1e-9) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_uses_the_same_mask(dtype: torch.dtype) -> None:
    x = torch.randn(50, 40).to(dtype).requires_grad_()
    change = (torch.rand(50, 40) + 1).to(dtype).requires_grad_()
    y = add_dropout(x, change, 0.3, noise(5))
    kept = noise(5).kept((50, 40), 0.3).bool()
    upstream = (torch.rand(50, 40) + 1).to(dtype)
    dx, dchange = torch.autograd.grad(y, [x, change], upstream)
    assert torch.equal(dx, upstream)
    assert torch.equal(dchange != 0, kept)
    assert torch.equal(y[~kept], x[~kept])
    factor = 1 / keep_probability(0.3)
    torch.testing.assert_close(dchange, (upstream.float() * kept * factor).to(dtype))
    torch.testing.assert_close(y, (x.float() + change.float() * kept * factor).to(dtype))


def test_dropout_gradients() -> None:
    x, change = normal(4, 6), normal(4, 6)
    assert torch.autograd.gradcheck(lambda x: dropout(x, 0.4, noise(2)), (x,))
    assert torch.autograd.gradcheck(lambda x, change: add_dropout(x, change, 0.4, noise(2)), (x, change))


def test_nothing_is_dropped_without_noise_or_rate() -> None:
    x = torch.randn(3, 4)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, noise(1)) is x
    assert torch.equal(add_dropout(x, x, 0.5, None), 2 * x)
