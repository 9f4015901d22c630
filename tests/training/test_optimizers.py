"""Each optimizer against steps that its original took; then what all of them promise about their state.

What ``golden/optimizer-steps`` holds is described in ``golden/README.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from warmstart.errors import TrainingError
from warmstart.training.adafactor import factored_axes
from warmstart.training.config import Group, TrainingConfig
from warmstart.training.methods import SGD, AdaBelief, Adafactor, Adam, Constant
from warmstart.training.optimizer import (
    build_optimizer,
    dump_slots,
    dump_steps,
    load_slots,
    set_learning_rate,
    slot_names,
)

Arrays = Mapping[str, np.ndarray]


def configure(optimizer: Any, groups: tuple[Group, ...] = ()) -> TrainingConfig:
    return TrainingConfig(
        steps=9,
        learning_rate=1.0,
        schedule=Constant(),
        evaluate_every=1,
        checkpoint_every=1,
        optimizer=optimizer,
        groups=groups,
    )


def module(arrays: Arrays) -> nn.Module:
    """A module whose parameters are these arrays."""
    model = nn.Module()
    for name, array in arrays.items():
        model.register_parameter(name, nn.Parameter(torch.from_numpy(np.array(array, dtype=np.float32))))
    return model


def take(model: nn.Module, optimizer: torch.optim.Optimizer, rate: float, gradients: Arrays) -> Arrays:
    """One step; the parameters after it."""
    for name, parameter in model.named_parameters():
        parameter.grad = torch.from_numpy(np.array(gradients[name], dtype=np.float32)) if name in gradients else None
    set_learning_rate(optimizer, rate)
    optimizer.step()
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def golden():  # type: ignore[no-untyped-def]
    folder = Path(__file__).parents[1] / "golden" / "optimizer-steps"

    def read(name: str) -> Arrays:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    return read


# --- Adam and its three rules ---------------------------------------------------------------------------------------


def test_a_step_of_tensorflows_adam(golden) -> None:  # type: ignore[no-untyped-def]
    arrays = golden("tensorflow")
    names = ("layer_6/weights", "layer_6/bias", "layer_1/bias")
    model = module({n.replace("/", "_"): arrays[f"{n}|before"] for n in names})
    config = Adam(type="adam", betas=(0.9, 0.999), epsilon=1e-8, epsilon_rule="tensorflow")
    optimizer = build_optimizer(model, configure(config), {})
    slots = {(n.replace("/", "_"), slot): arrays[f"{n}|{slot}"] for n in names for slot in "mv"}
    load_slots(optimizer, model, slots, int(arrays["step"]))
    after = take(model, optimizer, float(arrays["rate"]), {n.replace("/", "_"): arrays[f"{n}|gradient"] for n in names})
    for name in names:
        moved = np.abs(arrays[f"{name}|after"] - arrays[f"{name}|before"]).max()
        np.testing.assert_allclose(after[name.replace("/", "_")], arrays[f"{name}|after"], rtol=0, atol=2e-4 * moved)


@pytest.mark.parametrize(
    ("rule", "gradient", "moved"),
    [
        ("tensorflow", 1e-6, -0.00416),
        ("torch", 1e-6, -0.00495),
        ("tensorflow", 1e-8, -0.000251),
        ("torch", 1e-8, -0.0025),
    ],
)
def test_epsilon_is_where_the_rule_puts_it(rule: Any, gradient: float, moved: float) -> None:
    """Five steps of a constant tiny gradient g, where the two rules part: Σ g / (g + ε / √(1 - β₂ᵗ)) and 5·g / (g + ε)
    thousandths (the first two numbers were also measured in the two frameworks)."""
    model = module({"w": np.zeros(1)})
    config = Adam(type="adam", betas=(0.9, 0.999), epsilon=1e-8, epsilon_rule=rule)
    optimizer = build_optimizer(model, configure(config), {})
    for _ in range(5):
        after = take(model, optimizer, 1e-3, {"w": np.full(1, gradient)})
    assert after["w"][0] == pytest.approx(moved, rel=2e-3)


def test_tensorflows_rule_follows_each_parameters_own_count() -> None:
    """A parameter released late computes as one that began then."""
    config = Adam(type="adamw", betas=(0.9, 0.999), epsilon=1e-5, epsilon_rule="tensorflow", weight_decay=0.1)
    pair, alone = module({"a": np.ones((2, 2)), "b": np.ones((2, 2))}), module({"b": np.ones((2, 2))})
    both, single = (build_optimizer(m, configure(config), {}) for m in (pair, alone))
    gradient = {"a": np.full((2, 2), 1e-5), "b": np.full((2, 2), 3e-5)}
    take(pair, both, 0.01, {"a": gradient["a"]})
    for _ in range(3):
        got = take(pair, both, 0.01, gradient)
        expected = take(alone, single, 0.01, {"b": gradient["b"]})
    assert np.array_equal(got["b"], expected["b"])
    assert dump_steps(both, pair) == {"a": 4, "b": 3}
    m = 3e-5 * (1 - 0.9 ** np.arange(1, 4))
    v = 9e-10 * (1 - 0.999 ** np.arange(1, 4))
    w = 1.0
    for t in range(3):
        w = w * (1 - 0.01 * 0.1) - 0.01 * np.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1)) * m[t] / (
            v[t] ** 0.5 + 1e-5
        )
    np.testing.assert_allclose(got["b"], w, rtol=1e-6)


@pytest.mark.parametrize("rule", ["torch", "marian"])
def test_marians_adam_from_its_first_update(golden, rule: Any) -> None:  # type: ignore[no-untyped-def]
    """Three updates with an ε and a weight decay that matter."""
    arrays = golden("marian")
    model = module({"w": arrays["fresh/0|weights"]})
    config = Adam(type="adamw", betas=(0.9, 0.98), epsilon=0.01, epsilon_rule=rule, weight_decay=0.1)
    optimizer = build_optimizer(model, configure(config), {})
    m = np.zeros_like(arrays["fresh/0|weights"], np.float64)
    for n in (1, 2, 3):
        gradient = (arrays[f"fresh/{n}|m"] - 0.9 * m) / 0.1
        m = arrays[f"fresh/{n}|m"].astype(np.float64)
        after = take(model, optimizer, 0.002, {"w": gradient})["w"]
        slots = dump_slots(optimizer, model)
        np.testing.assert_allclose(slots["w", "m"], arrays[f"fresh/{n}|m"], rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(slots["w", "v"], arrays[f"fresh/{n}|v"], rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(after, arrays[f"fresh/{n}|weights"], rtol=0, atol=2e-7)
        np.testing.assert_allclose([1 - 0.9**n, 1 - 0.98**n], arrays["fresh/denominators"][n - 1], rtol=1e-5)


def test_marians_adam_continued(golden) -> None:  # type: ignore[no-untyped-def]
    """Update 2501 of a training of 2500, at the rate that its schedule had after update 2500."""
    arrays = golden("marian")
    model = module({"w": arrays["continued/0|weights"]})
    optimizer = build_optimizer(
        model, configure(Adam(type="adam", betas=(0.9, 0.98), epsilon=1e-9, epsilon_rule="marian")), {}
    )
    load_slots(optimizer, model, {("w", s): arrays[f"continued/0|{s}"] for s in "mv"}, 2500)
    gradient = (arrays["continued/1|m"] - 0.9 * arrays["continued/0|m"].astype(np.float64)) / 0.1
    after = take(model, optimizer, 0.002 * np.sqrt(500 / 2500), {"w": gradient})["w"]
    moved = np.abs(arrays["continued/1|weights"] - arrays["continued/0|weights"]).max()
    assert moved > 1e-4
    np.testing.assert_allclose(after, arrays["continued/1|weights"], rtol=0, atol=2e-7)


@pytest.mark.parametrize(("kind", "expected"), [("adamw", 1 - 0.1 * 0.5 - 0.1), ("adam", 1 - 0.1)])
@pytest.mark.parametrize("rule", ["torch", "marian", "tensorflow"])
def test_adamw_decouples_the_decay(kind: Any, expected: float, rule: Any) -> None:
    """In the first update Adam moves by the rate in the gradient's direction, whatever is added to the gradient."""
    model = module({"w": np.ones((2, 2))})
    config = Adam(type=kind, betas=(0.9, 0.999), epsilon=1e-12, weight_decay=0.5, epsilon_rule=rule)
    after = take(model, build_optimizer(model, configure(config), {}), 0.1, {"w": np.full((2, 2), 2.0)})
    np.testing.assert_allclose(after["w"], expected, rtol=1e-6)


# --- AdaBelief, SGD -------------------------------------------------------------------------------------------------


def test_adabelief_is_its_authors(golden) -> None:  # type: ignore[no-untyped-def]
    arrays = golden("adabelief")
    model = module({n: arrays[f"{n}|0"] for n in ("matrix", "vector")})
    config = AdaBelief(betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.1)
    optimizer = build_optimizer(model, configure(config), {})
    for k in range(1, 6):
        after = take(model, optimizer, 0.01, {n: arrays[f"{n}|gradient|{k}"] for n in ("matrix", "vector")})
        for name, array in after.items():
            np.testing.assert_allclose(array, arrays[f"{name}|{k}"], rtol=0, atol=2e-7)
    for (name, slot), array in dump_slots(optimizer, model).items():
        np.testing.assert_allclose(array, arrays[f"{name}|{slot}"], rtol=1e-5)


@pytest.mark.parametrize(
    ("nesterov", "expected"), [(False, 1 - 0.1 * (1 + 1.9 + 2.71)), (True, 1 - 0.1 * (1.9 + 2.71 + 3.439))]
)
def test_sgd_with_momentum(nesterov: bool, expected: float) -> None:
    model = module({"w": np.ones(3)})
    optimizer = build_optimizer(model, configure(SGD(momentum=0.9, nesterov=nesterov)), {})
    for _ in range(3):
        after = take(model, optimizer, 0.1, {"w": np.ones(3)})
    np.testing.assert_allclose(after["w"], expected, rtol=1e-6)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValidationError, match="nesterov changes nothing without momentum"):
        SGD(nesterov=True)


# --- Adafactor ------------------------------------------------------------------------------------------------------

_T5X: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 0),
    "late": ({}, 1_000_000),
    "offset": ({"step_offset": 999_990}, 1_000_000),
    "momentum": ({"beta1": 0.9, "weight_decay_rate": 0.01, "clipping_threshold": 0.5}, 0),
    "unscaled": ({"multiply_by_parameter_scale": False, "clipping_threshold": None, "decay_rate": 0.6}, 3),
    "unfactored": ({"factored": False}, 1),
}


@pytest.mark.parametrize("case", sorted(_T5X))
def test_adafactor_is_t5xs(golden, case: str) -> None:  # type: ignore[no-untyped-def]
    """Three steps of T5X's own Adafactor on five shapes, with gradients of very different sizes."""
    arrays = golden("t5x")
    options, step = _T5X[case]
    names = ("tall", "wide", "square", "flat", "vector")
    model = module({n: arrays[f"start|{n}"] for n in names})
    optimizer = build_optimizer(model, configure(Adafactor(min_dim_size_to_factor=3, **options)), {})
    begun = [key.split("|") for key in arrays if key.startswith(f"{case}|") and "|before|" in key]
    load_slots(optimizer, model, {(n, s): arrays[f"{case}|{n}|before|{s}"] for _, n, _, s in begun}, step)
    for k in range(3):
        after = take(model, optimizer, 0.01, {n: arrays[f"gradient|{n}|{k}"] for n in names})
    for name in names:
        moved = np.abs(arrays[f"{case}|{name}|after"] - arrays[f"start|{name}"]).max()
        np.testing.assert_allclose(after[name], arrays[f"{case}|{name}|after"], rtol=2e-7, atol=2e-6 * moved)
    slots = dump_slots(optimizer, model)
    theirs = [key.split("|") for key in arrays if key.startswith(f"{case}|") and "|after|" in key]
    assert set(slots) == {(n, s) for _, n, _, s in theirs}
    for _, name, _, slot in theirs:
        after_slot = arrays[f"{case}|{name}|after|{slot}"]
        np.testing.assert_allclose(slots[name, slot], after_slot, rtol=2e-6, atol=1e-6 * np.abs(after_slot).max())


def test_adafactor_gives_the_numbers_of_t5xs_own_tests() -> None:
    """``t5x/adafactor_test.py``: test_2D_simple and its siblings, test_apply_gradient."""
    for options, expected in (
        ({"min_dim_size_to_factor": 8}, {"vc": (24,), "vr": (16,)}),
        ({"min_dim_size_to_factor": 32}, {"v": (24, 16)}),
        ({"min_dim_size_to_factor": 32, "beta1": 0.1}, {"v": (24, 16), "m": (24, 16)}),
    ):
        model = module({"a": np.ones((24, 16))})
        config = Adafactor(**options)
        optimizer = build_optimizer(model, configure(config), {})
        take(model, optimizer, 0.1, {"a": np.ones((24, 16))})
        shapes = {slot: array.shape for (_, slot), array in dump_slots(optimizer, model).items()}
        assert shapes == expected
        assert set(shapes) <= set(slot_names(config))

    ones = np.ones((3, 2), np.float32)
    factored = {"vr": np.full(2, 0.9), "vc": np.full(3, 0.1)}
    whole = {"v": 0.5 * ones, "m": 0 * ones}
    for config, before, expected_slots in (
        (Adafactor(min_dim_size_to_factor=1), factored, {"vr": 0.9574349, "vc": 0.6169143}),
        (Adafactor(min_dim_size_to_factor=32, beta1=0.0), whole, {"v": 0.787174, "m": 0.1}),
    ):
        model = module({"x": ones})
        optimizer = build_optimizer(model, configure(config), {})
        load_slots(optimizer, model, {("x", slot): array for slot, array in before.items()}, 1)
        np.testing.assert_allclose(take(model, optimizer, 0.1, {"x": ones})["x"], 0.9, rtol=1e-6)
        for (_, slot), array in dump_slots(optimizer, model).items():
            np.testing.assert_allclose(array, expected_slots[slot], rtol=1e-6)


def test_adafactor_is_torchs_where_torch_can() -> None:
    random = np.random.default_rng(3)
    shapes = {"matrix": (5, 8), "vector": (6,), "square": (4, 4)}
    start = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    ours, theirs = module(start), module(start)
    optimizer = build_optimizer(ours, configure(Adafactor(min_dim_size_to_factor=1)), {})
    reference = torch.optim.Adafactor(theirs.parameters(), lr=0.003, eps=(1e-30, 1e-3))
    for _ in range(8):
        gradients = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        got = take(ours, optimizer, 0.003, gradients)
        for name, parameter in theirs.named_parameters():
            parameter.grad = torch.from_numpy(gradients[name])
        reference.step()
        for name, parameter in theirs.named_parameters():
            np.testing.assert_allclose(got[name], parameter.detach().numpy(), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((24, 16), (1, 0)), ((16, 24), (0, 1)), ((8, 8), (0, 1)), ((24, 4, 16), (2, 0)), ((24, 4), None), ((99,), None)],
)
def test_the_two_largest_dimensions_are_factored(shape: tuple[int, ...], expected: tuple[int, int] | None) -> None:
    config = Adafactor(min_dim_size_to_factor=8)
    assert factored_axes(shape, config) == expected
    if expected is None:
        return
    model = module({"w": np.zeros(shape)})
    optimizer = build_optimizer(model, configure(config), {})
    gradient = np.random.default_rng(0).standard_normal(shape)
    take(model, optimizer, 0.1, {"w": gradient})
    slots = dump_slots(optimizer, model)
    np.testing.assert_allclose(slots["w", "vr"], (gradient**2).mean(expected[1]), rtol=1e-5)
    np.testing.assert_allclose(slots["w", "vc"], (gradient**2).mean(expected[0]), rtol=1e-5)


def test_the_scale_of_a_large_parameter_is_exact() -> None:
    """A plain float32 sum of squares over four million numbers is wrong by 1e-4."""
    values = np.random.default_rng(0).random((2048, 2048), np.float32)
    model = module({"w": values})
    optimizer = build_optimizer(model, configure(Adafactor(factored=False)), {})
    after = take(model, optimizer, 0.5, {"w": np.ones_like(values)})["w"]
    moved = (values.astype(np.float64) - after).mean()  # g / √g² is 1
    assert moved == pytest.approx(0.5 * np.sqrt((values.astype(np.float64) ** 2).mean()), rel=1e-6)


# --- the state of every kind ----------------------------------------------------------------------------------------

KINDS = {
    "adamw": Adam(weight_decay=0.1),
    "adam": Adam(type="adam", weight_decay=0.1),
    "tensorflow": Adam(type="adam", epsilon=1e-4, epsilon_rule="tensorflow"),
    "adafactor": Adafactor(min_dim_size_to_factor=8),
    "adafactor-momentum": Adafactor(min_dim_size_to_factor=8, beta1=0.9),
    "adabelief": AdaBelief(epsilon=1e-12),
    "momentum": SGD(momentum=0.9),
    "sgd": SGD(),
}


def gradients(model: nn.Module, seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    return {n: random.standard_normal(tuple(p.shape)).astype(np.float32) for n, p in model.named_parameters()}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_resumed_optimizer_steps_bit_for_bit(build, kind: str) -> None:  # type: ignore[no-untyped-def]
    config = configure(KINDS[kind])
    model, copy = build(dropout=0.0), build(dropout=0.0)
    optimizer, other = build_optimizer(model, config, {}), build_optimizer(copy, config, {})
    held = "encoder.layers.0.ffn.up.weight"  # begins later than the others
    for seed in range(3):
        take(model, optimizer, 0.01, {n: g for n, g in gradients(model, seed).items() if seed or n != held})
    slots = {key: array.copy() for key, array in dump_slots(optimizer, model).items()}
    steps = dump_steps(optimizer, model)
    assert {slot for _, slot in slots} == set(slot_names(KINDS[kind]))
    if not isinstance(KINDS[kind], SGD):
        assert steps.keys() == {name for name, _ in slots} == {n for n, _ in model.named_parameters()}
        assert (steps[held], steps["encoder.embedding.weight"]) == (2, 3)
    copy.load_state_dict(model.state_dict())
    load_slots(other, copy, slots, steps)
    again = dump_slots(other, copy)
    assert again.keys() == slots.keys()
    assert all(np.array_equal(slots[key].view(np.int32), again[key].view(np.int32)) for key in slots)
    assert dump_steps(other, copy) == steps
    before = {key: array.copy() for key, array in slots.items()}
    for seed in (7, 8):
        a, b = (take(m, o, 0.01, gradients(m, seed)) for m, o in ((model, optimizer), (copy, other)))
        assert all(np.array_equal(a[name].view(np.int32), b[name].view(np.int32)) for name in a)
    assert all(np.array_equal(slots[key], before[key]) for key in slots)  # they were copied


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "momentum"])
def test_going_back_forgets_what_began_later(build, kind: str) -> None:  # type: ignore[no-untyped-def]
    model, held = build(), "encoder.layers.0.ffn.up.weight"
    optimizer = build_optimizer(model, configure(KINDS[kind]), {})
    take(model, optimizer, 0.01, {n: g for n, g in gradients(model, 0).items() if n != held})
    slots = {key: array.copy() for key, array in dump_slots(optimizer, model).items()}
    steps = dump_steps(optimizer, model)
    take(model, optimizer, 0.01, gradients(model, 1))
    assert held in {name for name, _ in dump_slots(optimizer, model)}
    load_slots(optimizer, model, slots, steps)
    again = dump_slots(optimizer, model)
    assert held not in {name for name, _ in again}
    assert all(np.array_equal(slots[key], again[key]) for key in again)
    load_slots(optimizer, model, {}, {})
    assert dump_slots(optimizer, model) == {}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_one_number_of_updates_may_stand_for_all(build, kind: str) -> None:  # type: ignore[no-untyped-def]
    config = configure(KINDS[kind])
    model, copy = build(), build()
    optimizer, other = build_optimizer(model, config, {}), build_optimizer(copy, config, {})
    take(model, optimizer, 0.01, gradients(model, 0))
    load_slots(other, copy, dump_slots(optimizer, model), 1)
    assert dump_steps(other, copy) == dump_steps(optimizer, model)


@pytest.mark.parametrize(
    ("written", "read"),
    [("adamw", "adafactor"), ("adafactor", "adamw"), ("adabelief", "adamw"), ("momentum", "adamw"), ("adam", "sgd")],
)
def test_another_optimizers_slots_are_one_clear_error(build, written: str, read: str) -> None:  # type: ignore[no-untyped-def]
    model, copy = build(), build()
    optimizer = build_optimizer(model, configure(KINDS[written]), {})
    take(model, optimizer, 0.01, gradients(model, 0))
    other = build_optimizer(copy, configure(KINDS[read]), {})
    with pytest.raises(TrainingError, match="another optimizer") as caught:
        load_slots(other, copy, dump_slots(optimizer, model), 1)
    assert not caught.value.problems
    assert caught.value.found == ", ".join(sorted(slot_names(KINDS[written])))
    assert type(other).__name__ in str(caught.value.expected)
    assert dump_slots(other, copy) == {}


def test_slots_may_use_any_name_of_a_tie_and_may_be_partial(build) -> None:  # type: ignore[no-untyped-def]
    model = build()
    optimizer = build_optimizer(model, configure(Adam()), {})
    moment = np.full((11, 8), 0.5, np.float32)
    load_slots(optimizer, model, {("decoder.embedding.weight", s): moment for s in "mv"}, 7)
    assert dump_steps(optimizer, model) == {"encoder.embedding.weight": 7}


def test_every_bad_slot_is_reported_and_nothing_changes(build) -> None:  # type: ignore[no-untyped-def]
    model = build()
    optimizer = build_optimizer(model, configure(Adam()), {})
    right, name = np.zeros((11, 8), np.float32), "encoder.embedding.weight"
    bias = "encoder.layers.0.ffn.up.bias"
    wrong = {
        (name, "m"): right.T,
        ("nowhere", "m"): right,
        (name, "v"): right,
        ("decoder.embedding.weight", "v"): right,
        (bias, "m"): np.zeros(16, np.float32),
    }
    with pytest.raises(TrainingError) as caught:
        load_slots(optimizer, model, wrong, {name: 1})
    text = str(caught.value)
    assert "(8, 11)" in text
    assert "m of nowhere" in text
    assert "given twice" in text
    assert {p.where for p in caught.value.problems if "slot v does not fit" in p.what} == {bias}
    assert {p.where for p in caught.value.problems if "counts" in p.what} == {bias}
    assert dump_slots(optimizer, model) == {}


# --- groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adamw", "adabelief"])
def test_weight_decay_spares_vectors(build, kind: str) -> None:  # type: ignore[no-untyped-def]
    model = build()
    optimizer = build_optimizer(model, configure(KINDS[kind].model_copy(update={"weight_decay": 0.1})), {})
    assert len(optimizer.param_groups) == 2
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decay[id(p)] == (0.1 if p.ndim > 1 else 0.0) for p in model.parameters())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_groups_have_their_own_rate_and_decay(kind: str) -> None:
    """A group with a factor and a decay is trained as a model of its own with that rate and decay."""
    decay = "weight_decay_rate" if isinstance(KINDS[kind], Adafactor) else "weight_decay"
    groups = (
        Group(parameters=("fast.*",), learning_rate=3.0, weight_decay=0.2),
        Group(stages=("held",), learning_rate=0.0, weight_decay=0.0),
        Group(parameters=("**",), stages=("held",)),
    )
    start = np.random.default_rng(0).standard_normal((3, 3))
    model, fast, rest = nn.Module(), module({"w": start}), module({"w": start})
    model.fast, model.held, model.rest = (module({"w": start}) for _ in range(3))
    optimizer = build_optimizer(model, configure(KINDS[kind], groups), {"held.w": "held", "fast.w": "other"})
    references = [
        build_optimizer(fast, configure(KINDS[kind].model_copy(update={decay: 0.2})), {}),
        build_optimizer(rest, configure(KINDS[kind]), {}),
    ]
    for seed in range(3):
        gradient = np.random.default_rng(seed).standard_normal((3, 3))
        got = take(model, optimizer, 0.01, dict.fromkeys(("fast.w", "held.w", "rest.w"), gradient))
        expected = [
            take(m, o, rate, {"w": gradient})["w"]
            for m, o, rate in zip((fast, rest), references, (0.03, 0.01), strict=True)
        ]
    assert np.array_equal(got["fast.w"], expected[0])
    assert np.array_equal(got["rest.w"], expected[1])
    assert not np.array_equal(got["fast.w"], got["rest.w"])
    assert np.array_equal(got["held.w"], start.astype(np.float32))
