"""What a transfer drops, beside what Coqui itself re-initialised on the same checkpoint (its own log)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import coqui_models
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


def test_what_a_start_leaves_behind_has_a_reason(tmp_path: Path) -> None:
    """cuDNN's array where the kernel beside it is read, and the numbers of mixed precision."""
    arrays = coqui_models.tensors(coqui_models.config(), cudnn=True, slots=False)
    arrays |= {"current_loss_scale": np.asarray(1.0, np.float32), "good_steps": np.asarray(3, np.int32)}
    path = coqui_models.save(tmp_path / "run", arrays, {"audio_sample_rate": 8000}, "\n".join(coqui_models.LABELS))
    model = open_model(path, dialect="coqui")
    plan = make_plan([(StartConfig(source="parent", mode="init"), model)], target_of(model))
    assert plan.coverage == 1.0
    reasons = {left.array: left.reason for left in plan.leftovers}
    assert set(reasons) == {coqui_models.OPAQUE, "current_loss_scale", "good_steps"}
    assert "cuDNN's layout" in reasons[coqui_models.OPAQUE]
    assert "mixed precision" in reasons["good_steps"]
    arrays["layer_7/weights"] = np.zeros((2, 2), np.float32)
    path = coqui_models.save(tmp_path / "more", arrays, {"audio_sample_rate": 8000}, "\n".join(coqui_models.LABELS))
    model = open_model(path, dialect="coqui")
    with pytest.raises(PlanError, match="layer_7/weights"):
        make_plan([(StartConfig(source="parent", mode="init"), model)], target_of(model))
