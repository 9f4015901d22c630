"""What a transfer drops, beside what Coqui itself re-initialised on the same checkpoint (its own log)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from warmstart.bootstrap.plan import Plan
from warmstart.bootstrap.planner import Target, make_plan
from warmstart.bootstrap.start import StartConfig
from warmstart.bundle.model import Model, open_model
from warmstart.errors import PlanError

ADAM = {"m": "Adam", "v": "Adam_1"}


def target_of(model: Model) -> Target:
    family, config, _ = model.require()
    return Target(family.parameters(config), family.stages, family.order, family.behaviour(config), model.vocabularies)


def coquis_names(plan: Plan, model: Model) -> tuple[set[str], set[str]]:
    """Variables that the plan initialises and that it loads, in the source's own names."""
    _, _, reading = model.require()
    fresh: set[str] = set()
    loaded: set[str] = set()
    for row in plan.rows:
        (name,) = reading.origins[row.target].link.foreign
        slots = {s.slot: s.action for s in plan.slots if s.target == row.target}
        (fresh if row.action == "initialise" else loaded).add(name)
        for slot, ending in ADAM.items():
            (loaded if slots.get(slot) == "load" else fresh).add(f"{name}/{ending}")
    return fresh, loaded


@pytest.mark.parametrize("count", range(6))
def test_the_table_of_dropped_layers_is_coquis(fixtures: Path, count: int) -> None:
    """By exact stages. Coqui's five layers also re-initialise ``beta2_power``, because its name has a 2 in it; that
    is not copied: Adam's scalars go with the step."""
    expected = json.loads((fixtures / "fixtures/coqui-transfer-expected.json").read_text())[str(count)]
    model = open_model(f"{fixtures}/fixtures/coqui-digits-en@best")
    kept = {"optimizer": "carry", "step": "carry"}
    start = (
        {"mode": "transfer", "drop_last": count, "vocabulary": "match", **kept} if count else {"mode": "init", **kept}
    )
    plan = make_plan([(StartConfig(source="parent", **start), model)], target_of(model))
    fresh, loaded = coquis_names(plan, model)
    assert fresh == set(expected["reinitialised"]) - {"beta2_power"}
    scalars = {"global_step", "beta1_power", "learning_rate", "beta2_power"}
    assert loaded | scalars == set(expected["loaded"]) | ({"beta2_power"} if count == 5 else set())
    assert plan.step == model.checkpoint.step == 3354


@pytest.mark.parametrize("count", [0, 6])
def test_other_counts_are_refused(fixtures: Path, count: int) -> None:
    """Coqui drops five of more than five, and says so in its log."""
    model = open_model(f"{fixtures}/fixtures/coqui-digits-en@best")
    start = StartConfig(source="parent", mode="transfer", drop_last=count, vocabulary="match")
    with pytest.raises(PlanError, match="1 to 5"):
        make_plan([(start, model)], target_of(model))
