"""Groups of parameters: who belongs where, and who is held when."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from warmstart.errors import ConfigError, TrainingError
from warmstart.models.transformer.parameters import parameters
from warmstart.training.config import Group, Plateau, Release, TrainingConfig
from warmstart.training.groups import Freezing, assign
from warmstart.training.methods import Adafactor, Adam, Constant
from warmstart.training.objective import batch_loss
from warmstart.training.optimizer import build_optimizer, dump_slots, dump_steps, set_learning_rate

TIE = ("encoder.embedding.weight", "decoder.embedding.weight", "decoder.output.weight")
EMBEDDINGS = Group(parameters=TIE)


@pytest.fixture
def stages(build) -> dict[str, str]:  # type: ignore[no-untyped-def]
    return {p.name: p.stage for p in parameters(build().config)}


def test_the_first_group_that_matches_has_a_parameter(build, stages) -> None:  # type: ignore[no-untyped-def]
    groups = (
        EMBEDDINGS,
        Group(parameters=("**.ffn.*.bias",)),
        Group(stages=("encoder",)),
        Group(parameters=("**.ffn.**",)),
    )
    found = assign(build(), groups, stages)
    assert found["encoder.embedding.weight"] == 0
    assert found["encoder.layers.0.ffn.up.bias"] == found["decoder.layers.0.ffn.up.bias"] == 1
    assert found["encoder.layers.0.ffn.up.weight"] == 2
    assert found["decoder.layers.0.ffn.up.weight"] == 3
    assert found["decoder.layers.0.ffn_norm.weight"] is None
    assert found.keys() == dict(build().named_parameters()).keys()


@pytest.mark.parametrize("group", [Group(stages=("encoder", "source_embedding")), Group(parameters=("encoder.**",))])
def test_half_of_a_tie_is_refused(build, stages, group: Group) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="half of a tie") as caught:
        assign(build(), (group,), stages)
    (problem,) = caught.value.problems
    assert all(name in str(problem.expected) for name in TIE)
    assert problem.found == "encoder.embedding.weight: groups.0, decoder.embedding.weight: no group, " + (
        "decoder.output.weight: no group"
    )
    assert assign(build(), (EMBEDDINGS, group), stages)["encoder.embedding.weight"] == 0


def test_every_group_that_matches_nothing_is_reported(build, stages) -> None:  # type: ignore[no-untyped-def]
    groups = (
        EMBEDDINGS,
        Group(parameters=("encoder.layers.*.attention.**", "decoder.**.bias"), stages=("encodr",)),
        Group(parameters=("decoder.layers.0.ffn.up.bias",)),
    )
    with pytest.raises(ConfigError) as caught:
        assign(build(), groups, stages)
    where = [(p.where, p.what, p.todo) for p in caught.value.problems]
    assert where == [
        ("groups.1.stages", "'encodr' matches no parameter", "did you mean encoder?"),
        ("groups.1.parameters", "'encoder.layers.*.attention.**' matches no parameter", where[1][2]),
        ("groups.2", "all parameters of this group belong to earlier ones", "put it before them, or remove it"),
    ]
    expected = str(caught.value.problems[0].expected)
    assert "stages decoder, encoder, output, source_embedding, target_embedding" in expected
    assert "encoder.embedding.weight" in expected


# --- freezing -------------------------------------------------------------------------------------------------------


def configure(optimizer: Any, groups: tuple[Group, ...]) -> TrainingConfig:
    return TrainingConfig(
        steps=9,
        learning_rate=1.0,
        schedule=Constant(),
        evaluate_every=1,
        checkpoint_every=1,
        optimizer=optimizer,
        groups=groups,
        plateau=Plateau(patience=1),
    )


def run(model: nn.Module, config: TrainingConfig, stages: dict[str, str], batch: Any, updates: int) -> Any:
    """After each update: the parameters; and the optimizer at the end. A plateau comes with each third update."""
    optimizer = build_optimizer(model, config, stages)
    freezing = Freezing(model, config.groups, stages)
    history = [{n: p.detach().clone() for n, p in model.named_parameters()}]
    for step in range(1, updates + 1):
        freezing.apply(step, (step - 1) // 3)
        optimizer.zero_grad()
        batch_loss(model, batch, 0.1).loss.backward()
        set_learning_rate(optimizer, 0.01)
        optimizer.step()
        history.append({n: p.detach().clone() for n, p in model.named_parameters()})
    return history, optimizer


@pytest.mark.parametrize("optimizer", [Adam(weight_decay=0.1), Adafactor(min_dim_size_to_factor=4)])
def test_held_arrays_stay_bit_equal_until_their_release(build, batch, stages, optimizer: Any) -> None:  # type: ignore[no-untyped-def]
    groups = (
        EMBEDDINGS,
        Group(parameters=("encoder.layers.0.ffn.up.*",), freeze=True),
        Group(parameters=("encoder.layers.0.ffn.**",), freeze=Release(step=2)),
        Group(stages=("encoder",), freeze=Release(plateaus=1)),
    )
    model = build(dropout=0.0)
    history, built = run(model, configure(optimizer, groups), stages, batch, 5)
    steps = dump_steps(built, model)
    for name in history[0]:
        begins = {1: 99, 2: 3, 3: 4}.get(assign(model, groups, stages)[name] or 0, 1)
        moved = [not torch.equal(a[name], b[name]) for a, b in pairwise(history)]
        if not name.endswith("key.bias"):  # its gradient is zero but for rounding
            assert moved == [step >= begins for step in range(1, 6)], name
        assert steps.get(name, 0) == max(0, 6 - begins), name
    assert {name for name, _ in dump_slots(built, model)} == steps.keys()


def test_a_released_parameter_begins_as_in_a_new_optimizer(build, batch, stages) -> None:  # type: ignore[no-untyped-def]
    """Its first update is Adam's first: the rate, in the direction of the gradient."""
    name = "encoder.layers.0.self_attention.output.weight"
    groups = (Group(parameters=(name,), freeze=Release(step=4)),)
    history, _ = run(build(dropout=0.0), configure(Adam(epsilon=1e-12), groups), stages, batch, 5)
    moved = (history[5][name] - history[4][name]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-3, atol=0)


def test_applying_again_is_idle_and_leaves_others_alone(build, stages) -> None:  # type: ignore[no-untyped-def]
    model = build()
    bias = model.decoder.layers[0].ffn.up.bias
    bias.requires_grad_(False)
    groups = (
        Group(stages=("encoder",), freeze=Release(step=3)),
        Group(parameters=("decoder.**.weight",), learning_rate=0.1),
    )
    groups = (EMBEDDINGS, *groups)
    freezing = Freezing(model, groups, stages)
    assert [freezing.apply(step, 0) for step in (1, 2, 3, 4, 5)] == [True, False, False, True, False]
    assert not bias.requires_grad
    assert Freezing(model, groups, stages).apply(9, 0)  # a run that goes on after the release
    assert model.encoder.layers[0].ffn.up.bias.requires_grad
    model.encoder.layers[0].ffn.up.bias.grad = torch.ones(16)
    assert freezing.apply(2, 0)  # a run that goes back
    assert not model.encoder.layers[0].ffn.up.bias.requires_grad
    assert model.encoder.layers[0].ffn.up.bias.grad is None


def test_nothing_left_to_train_is_an_error(build, stages) -> None:  # type: ignore[no-untyped-def]
    groups = (Group(parameters=("**",), freeze=Release(plateaus=2)),)
    freezing = Freezing(build(), groups, stages)
    with pytest.raises(TrainingError, match="every parameter is frozen"):
        freezing.apply(1, 1)
    assert freezing.apply(1, 2)
