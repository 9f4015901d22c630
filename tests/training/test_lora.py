"""Low-rank adapters: what is trained, what stays, what they can learn, and under which names all of it is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from warmstart.errors import ConfigError, TrainingError
from warmstart.models.layers.linear import linear
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.module import Transformer
from warmstart.training.config import LoRA
from warmstart.training.lora import (
    adapters,
    add_lora,
    canonical_name,
    canonical_parameters,
    load_adapters,
    merged,
)
from warmstart.training.objective import batch_loss
from warmstart.training.precision import autocast

LAYERS = {f"{place}.{part}" for part in ("query", "value") for place in (
    "encoder.layers.0.self_attention",
    "decoder.layers.0.self_attention",
    "decoder.layers.0.cross_attention",
)}  # fmt: skip


def inputs(batch: Any) -> tuple[torch.Tensor, ...]:
    arrays = (batch.source, batch.source_lengths, batch.target)
    return tuple(torch.from_numpy(array).long() for array in arrays)


def updated(model: nn.Module, batch: Any, steps: int = 5) -> None:
    """Updates of everything that may be trained."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = batch_loss(model, batch, 0.1)
        (loss.loss / loss.units).backward()
        optimizer.step()


def test_an_adapted_model_begins_as_it_was(build, batch) -> None:  # type: ignore[no-untyped-def]
    model, plain = build(dropout=0.0), build(dropout=0.0)
    assert set(add_lora(model, LoRA(rank=3), 1)) == LAYERS
    assert torch.equal(model(*inputs(batch)), plain(*inputs(batch)))
    assert all((array == 0).all() for name, array in adapters(model).items() if name.endswith(".lora_b"))


def test_only_adapters_are_trained_and_the_base_stays_bit_equal(build, batch) -> None:  # type: ignore[no-untyped-def]
    model, plain = build(), build()
    kept = ("decoder.output.bias", "decoder.layers.0.ffn.up.weight", "decoder.embedding.weight")
    add_lora(model, LoRA(rank=2), 1, kept)
    before = {name: array.clone() for name, array in adapters(model).items()}
    updated(model, batch)
    after = canonical_parameters(model, remove_duplicate=False)
    assert after.keys() == {*dict(plain.named_parameters(remove_duplicate=False)), *before}
    for name, parameter in plain.named_parameters(remove_duplicate=False):
        # conftest ties all embeddings, so the kept one is trained under each of its names
        trained = name in kept or name in ("encoder.embedding.weight", "decoder.output.weight")
        assert torch.equal(parameter, after[name]) != trained, name
    assert all(not torch.equal(array, after[name]) for name, array in before.items())


class Products(TorchDispatchMode):
    """The shapes of the matrix products that are computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.shapes.add(tuple(found.shape))
        return found


@pytest.mark.parametrize("trained", [False, True])
def test_gradients_of_adapters_without_that_of_the_weight(trained: bool) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(24, 40), nn.Linear(24, 8)
    model = nn.ModuleDict({"first": first, "second": second})
    add_lora(model, LoRA(rank=3, alpha=5.0, modules=["first"]), 1, ["first.weight"] if trained else [])
    adapter = first.parametrizations.weight[0]  # type: ignore[union-attr, index]
    with torch.no_grad():
        adapter.lora_b.normal_()
    x, upstream = torch.randn(16, 24, requires_grad=True), torch.randn(16, 48)
    plain = torch.cat([nn.functional.linear(x, layer.weight, layer.bias) for layer in (first, second)], 1)
    wanted = [x, adapter.lora_a, adapter.lora_b]
    expected = torch.autograd.grad(plain, wanted, upstream)
    ours = linear(x, first, second)
    alone = nn.Linear(24, 40)
    alone.load_state_dict({name: torch.from_numpy(merged(model)[f"first.{name}"]) for name in ("weight", "bias")})
    assert torch.equal(ours, linear(x, alone, second))
    with Products() as products:
        found = torch.autograd.grad(ours, wanted, upstream)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert ((48, 24) in products.shapes) == trained


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_merged_computes_what_unmerged_does(build, batch, precision: str) -> None:  # type: ignore[no-untyped-def]
    model, plain = build(dropout=0.0), build(dropout=0.0)
    add_lora(model, LoRA(rank=2, alpha=5.0), 1)
    updated(model, batch)
    arrays = merged(model)
    assert arrays.keys() == dict(plain.named_parameters()).keys()
    before = plain(*inputs(batch)).detach()
    plain.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    with autocast(precision, torch.device("cpu")):
        torch.testing.assert_close(plain(*inputs(batch)), model(*inputs(batch)))
    assert not torch.allclose(before, plain(*inputs(batch)), atol=0.01)
    base, own = canonical_parameters(model), adapters(model)
    for layer in LAYERS:
        w, a, b = (
            array.detach().double()
            for array in (base[f"{layer}.weight"], own[f"{layer}.lora_a"], own[f"{layer}.lora_b"])
        )
        np.testing.assert_allclose(arrays[f"{layer}.weight"], w + 5.0 / 2 * b @ a, rtol=1e-5, atol=1e-6)


def test_adapters_return_bit_equal(build, batch) -> None:  # type: ignore[no-untyped-def]
    model, other = build(dropout=0.0), build(dropout=0.0)
    add_lora(model, LoRA(rank=2), 1)
    updated(model, batch)
    stored = {name: array.numpy().copy() for name, array in adapters(model).items()}
    assert set(stored) == {f"{layer}.{part}" for layer in LAYERS for part in ("lora_a", "lora_b")}
    add_lora(other, LoRA(rank=2), 9)
    load_adapters(other, stored)
    assert all(
        np.array_equal(stored[name].view(np.int32), a.numpy().view(np.int32)) for name, a in adapters(other).items()
    )
    assert torch.equal(model(*inputs(batch)), other(*inputs(batch)))


def test_adapters_of_another_model_are_one_error(build) -> None:  # type: ignore[no-untyped-def]
    model = build()
    add_lora(model, LoRA(rank=2), 1)
    before = {name: array.clone() for name, array in adapters(model).items()}
    stored = {name: np.ones(array.shape, np.float32) for name, array in before.items()}
    first, second, *_ = stored
    stored["encoder.layers.7.self_attention.query.lora_a"] = stored.pop(first)
    stored[second] = stored[second].T
    with pytest.raises(TrainingError) as caught:
        load_adapters(model, stored)
    assert [p.where for p in caught.value.problems] == [first, "encoder.layers.7.self_attention.query.lora_a", second]
    assert all(torch.equal(before[name], array) for name, array in adapters(model).items())


def test_first_values_depend_on_seed_and_name_only(build) -> None:  # type: ignore[no-untyped-def]
    def made(seed: int, *patterns: str) -> dict[str, torch.Tensor]:
        model = build()
        add_lora(model, LoRA(rank=4, modules=patterns), seed)
        return {name: array for name, array in adapters(model).items() if name.endswith(".lora_a")}

    many, few, other = made(1, "**.query", "**.key"), made(1, "**.query"), made(2, "**.query")
    assert all(torch.equal(array, many[name]) and not torch.equal(array, other[name]) for name, array in few.items())
    assert len({array.numpy().tobytes() for array in many.values()}) == 6
    everything = torch.cat([array.flatten() for array in many.values()])
    assert everything.var().item() == pytest.approx(1 / 8, rel=0.3)  # 1 / in


@pytest.mark.parametrize("rank", [1, 2])
def test_a_difference_of_low_rank_is_learnt_by_that_rank_only(rank: int) -> None:
    """A difference of rank two: by rank one it can be learnt up to its second singular value (Eckart and Young)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10))
    u, _, v = torch.linalg.svd(torch.randn(10, 12), full_matrices=False)
    difference = u[:, :2] @ torch.diag(torch.tensor([3.0, 2.0])) @ v[:2]
    wanted = model[0].weight.detach() + difference
    add_lora(model, LoRA(modules=("*",), rank=rank, alpha=2.0), 1)
    optimizer = torch.optim.Adam(adapter for adapter in model.parameters() if adapter.requires_grad)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 600)
        optimizer.zero_grad()
        (model[0].weight - wanted).square().sum().backward()
        optimizer.step()
    left = torch.linalg.norm(torch.from_numpy(merged(model)["0.weight"]) - wanted).item()
    assert left == pytest.approx({1: 2.0, 2: 0.0}[rank], abs=1e-2)


def test_names_are_canonical_and_others_are_left_alone(build) -> None:  # type: ignore[no-untyped-def]
    plain, model = build(), build()
    assert canonical_parameters(plain) == dict(plain.named_parameters())
    add_lora(model, LoRA(rank=2), 1)
    names = [canonical_name(name) for name in model.state_dict()]
    assert sorted(names) == sorted([*plain.state_dict(), *adapters(model)])
    assert canonical_name("encoder.weight.original") == "encoder.weight.original"


def test_what_does_not_fit_is_said_at_once_and_changes_nothing(build) -> None:  # type: ignore[no-untyped-def]
    model = build()
    config = LoRA(modules=("**.qeury", "**.query", "decoder.output", "encoder.embedding"))
    with pytest.raises(ConfigError) as caught:
        add_lora(model, config, 1, ("decoder.output.bias", "nowhere.weight"))
    problems = caught.value.problems
    assert [p.what.split()[0] for p in problems] == ["'**.qeury'", "'encoder.embedding'", "this", "no"]
    assert "encoder.layers.0.self_attention.query" in str(problems[0]) or "_attention.query" in str(problems[0])
    assert problems[2].where == "decoder.output"
    assert problems[2].found is not None
    assert "encoder.embedding.weight" in problems[2].found
    assert problems[3].where == "nowhere.weight"
    assert not adapters(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_untied_output_may_be_adapted(batch) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    sizes = {"source_vocab_size": 11, "target_vocab_size": 11, "d_model": 8, "num_heads": 2, "d_ff": 16}
    model = Transformer(TransformerConfig(**sizes, encoder_layers=1, decoder_layers=1, dropout=0.0))
    assert add_lora(model, LoRA(modules=("decoder.output",), rank=2), 1) == ("decoder.output",)
    before = model.decoder.output.weight.detach().clone()
    updated(model, batch)
    difference = model.decoder.output.weight.detach() - before
    assert torch.linalg.matrix_rank(difference, atol=1e-4).item() == 2
