"""The exact plan for each mode and each mismatch, on small models in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from warmstart.bootstrap.apply import initial_values, start_arrays, start_slots
from warmstart.bootstrap.planner import Target, make_plan
from warmstart.bootstrap.start import StartConfig
from warmstart.bundle.layout import storages, write_bundle
from warmstart.bundle.model import open_model
from warmstart.errors import PlanError
from warmstart.models.family import Composite
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.family import TransformerFamily
from warmstart.vocabularies.characters import CharacterVocabulary

FAMILY = TransformerFamily()


def vocabulary(letters: str) -> CharacterVocabulary:
    return CharacterVocabulary(("</s>", "<unk>", *letters))


def config(source: str = "abc", target: str = "xyz", **keys) -> TransformerConfig:
    base = {"d_model": 8, "num_heads": 2, "d_ff": 16, "encoder_layers": 1, "decoder_layers": 1}
    return TransformerConfig(source_vocab_size=len(source) + 2, target_vocab_size=len(target) + 2, **{**base, **keys})


def parent(tmp_path: Path, source: str = "abc", target: str = "xyz", name: str = "parent", **keys):
    """A bundle with random weights, opened."""
    c = config(source, target, **keys)
    rng = np.random.default_rng(len(name))
    arrays = (rng.standard_normal(e.shape).astype(np.float32) for e in storages(FAMILY, c))
    write_bundle(tmp_path / name, FAMILY, c, arrays, {"source": vocabulary(source), "target": vocabulary(target)}, {})
    return open_model(tmp_path / name)


def target(source: str = "abc", letters: str = "xyz", **keys) -> Target:
    c = config(source, letters, **keys)
    sides = {"source": vocabulary(source), "target": vocabulary(letters)}
    return Target(FAMILY.parameters(c), FAMILY.stages, FAMILY.order, FAMILY.behaviour(c), sides, c)


def start(**keys) -> StartConfig:
    return StartConfig(source="parent", **keys)


def actions(plan):
    return {r.target: r.action for r in plan.rows}


def problems(caught) -> str:
    return str(caught.value)


def test_init_loads_everything_bit_equal(tmp_path):
    model = parent(tmp_path)
    plan = make_plan([(start(mode="init"), model)], target())
    assert set(actions(plan).values()) == {"load"}
    assert plan.coverage == 1.0
    assert plan.leftovers == ()
    for name, value in start_arrays(plan, [model], seed=1):
        assert value.tobytes() == model.reading.read(name).tobytes()


def test_rows_by_token_follow_the_token_and_the_rest_is_new(tmp_path):
    model = parent(tmp_path)
    plan = make_plan([(start(mode="transfer", vocabulary="rows"), model)], target(letters="zwx"))
    row = next(r for r in plan.rows if r.target == "decoder.embedding.weight")
    assert row.action == "load rows"
    assert row.rows == (0, 1, 4, -1, 2)
    assert row.reason == "4 of 5 rows by token, 1 new"
    assert actions(plan)["encoder.embedding.weight"] == "load"
    values = dict(start_arrays(plan, [model], seed=3))["decoder.embedding.weight"]
    old = model.reading.read("decoder.embedding.weight")
    np.testing.assert_array_equal(values[[0, 1, 2, 4]], old[[0, 1, 4, 2]])
    np.testing.assert_array_equal(values[3], initial_values("decoder.embedding.weight", (5, 8), "embedding", 3)[3])


def test_transfer_initialises_what_a_new_vocabulary_indexes(tmp_path):
    model = parent(tmp_path)
    plan = make_plan([(start(mode="transfer"), model)], target(letters="zwx"))
    new = {n for n, a in actions(plan).items() if a == "initialise"}
    assert new == {"decoder.embedding.weight", "decoder.output.weight", "decoder.output.bias"}
    assert {item.array for item in plan.leftovers} == new
    assert {item.reason for item in plan.leftovers} == {"new target vocabulary"}


@pytest.mark.parametrize("letters", ["zyx", "xyzw"], ids=["permuted, equal size", "grown"])
def test_another_vocabulary_is_refused_where_it_must_match(tmp_path, letters):
    model = parent(tmp_path)
    with pytest.raises(PlanError, match="the target vocabulary is not the source's") as caught:
        make_plan([(start(mode="init"), model)], target(letters=letters))
    assert "vocabulary: rows" in problems(caught)
    with pytest.raises(PlanError) as caught:
        make_plan([(start(mode="continue", data="start"), model)], target(letters=letters))
    assert "use `mode: init` with `vocabulary: rows`, or `mode: transfer`" in problems(caught)


def test_continue_needs_slots_a_step_and_a_position(tmp_path):
    model = parent(tmp_path)
    with pytest.raises(PlanError) as caught:
        make_plan([(start(mode="continue"), model)], target())
    for override in ("optimizer: fresh", "step: fresh", "data: start"):
        assert f"say `{override}`" in problems(caught)


def test_missing_extra_and_other_shapes(tmp_path):
    model = parent(tmp_path)
    with pytest.raises(PlanError) as caught:
        make_plan([(start(mode="init"), model)], target(encoder_layers=2))
    assert "encoder.layers.1.ffn.up.weight is missing in the source" in problems(caught)
    plan = make_plan([(start(mode="init", strict=False), model)], target(encoder_layers=2))
    new = {n for n, a in actions(plan).items() if a == "initialise"}
    assert new == {n for n in actions(plan) if n.startswith("encoder.layers.1.")}
    deep = parent(tmp_path, name="deep", decoder_layers=2)
    with pytest.raises(PlanError, match="26 arrays of the source would be left behind"):
        make_plan([(start(mode="init"), deep)], target())
    plan = make_plan([(start(mode="init", strict=False), deep)], target())
    assert len(plan.leftovers) == 26
    assert {item.reason for item in plan.leftovers} == {"the model has no such parameter"}
    with pytest.raises(PlanError) as caught:
        make_plan([(start(mode="init"), model)], target(d_ff=32))
    assert "expected: [32, 8]\n  found: [16, 8]" in problems(caught)
    plan = make_plan([(start(mode="init", strict=False), model)], target(d_ff=32))
    assert actions(plan)["encoder.layers.0.ffn.up.weight"] == "initialise"


def test_other_shapes_name_the_key_that_makes_them(tmp_path):
    with pytest.raises(PlanError) as caught:
        make_plan([(start(mode="continue", data="start"), parent(tmp_path))], target(d_ff=32, dropout=0.3))
    said = [p for p in caught.value.problems if p.what.startswith("`model.")]
    assert [p.what for p in said] == ["`model.d_ff: 32` makes arrays of other shapes than the source's"]
    assert said[0].expected == "d_ff 16, as the source has it"
    assert "`mode: init` and `strict: false`" in said[0].todo


def test_equal_shapes_that_mean_something_else(tmp_path):
    model = parent(tmp_path)
    with pytest.raises(PlanError, match="num_heads is 4 in the model and 2 in the source"):
        make_plan([(start(mode="init"), model)], target(num_heads=4))
    plan = make_plan([(start(mode="init", strict=False), model)], target(num_heads=4))
    assert "num_heads is 4" in plan.notes[0]


def test_half_of_a_tie_is_named(tmp_path):
    untied = parent(tmp_path)
    with pytest.raises(PlanError) as caught:
        make_plan([(start(mode="init", strict=False), untied)], target(tied_embeddings="target"))
    assert "are tied in the model, but not in the source" in problems(caught)
    assert "exclude: [decoder.output.weight]" in problems(caught)
    plan = make_plan(
        [(start(mode="init", exclude=["decoder.output.weight"]), untied)], target(tied_embeddings="target")
    )
    assert actions(plan)["decoder.embedding.weight"] == "load"
    tied = parent(tmp_path, name="tied", tied_embeddings="target")
    with pytest.raises(PlanError, match="dropping output would drop half of a tie"):
        make_plan([(start(mode="transfer", drop=["output"]), tied)], target(tied_embeddings="target"))
    plan = make_plan([(start(mode="init", strict=False), tied)], target())
    assert actions(plan)["decoder.output.weight"] == "load"


def test_stages_are_dropped_by_name(tmp_path):
    plan = make_plan([(start(mode="transfer", drop=["encoder"]), parent(tmp_path))], target())
    dropped = {r.target for r in plan.rows if r.action == "initialise"}
    assert dropped == {r.target for r in plan.rows if r.stage == "encoder"}
    with pytest.raises(PlanError, match="no stage of the model"):
        make_plan([(start(mode="transfer", drop=["encodr"]), parent(tmp_path, name="b"))], target())
    with pytest.raises(PlanError, match="`drop_last` needs stages with an order"):
        make_plan([(start(mode="transfer", drop_last=1), parent(tmp_path, name="c"))], target())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mode": "init", "optimizer": "fresh"}, "`optimizer: fresh` changes nothing"),
        ({"mode": "init", "strict": True}, "`strict: true` changes nothing"),
        ({"mode": "use", "vocabulary": "rows"}, "does not go with `mode: use`"),
        ({"mode": "use", "select": ["encoder.**"]}, "`select` does not go with `mode: use`"),
        ({"mode": "continue", "vocabulary": "rows"}, "belongs to the rows of the old vocabulary"),
        ({"mode": "continue", "drop": ["output"]}, "`continue` keeps every stage"),
        ({"mode": "init", "select": ["encdoer.**"]}, "`select: encdoer.**` matches nothing"),
        ({"mode": "init", "rename": {"foo.**": "bar.**"}}, "`rename: foo.**` matches nothing"),
        ({"mode": "init", "into": "left"}, "`into: left` is no part of the model"),
    ],
)
def test_keys_that_change_nothing_or_do_not_go_together(tmp_path, keys, message):
    with pytest.raises(PlanError) as caught:
        make_plan([(start(**keys), parent(tmp_path))], target())
    assert message in problems(caught)


def test_renamed_layers_and_coverage(tmp_path):
    model = parent(tmp_path)
    renamed = start(mode="init", strict=False, rename={"encoder.layers.{i}.**": "encoder.layers.{i+1}.**"})
    plan = make_plan([(renamed, model)], target(encoder_layers=2))
    row = next(r for r in plan.rows if r.target == "encoder.layers.1.ffn.up.weight")
    assert (row.action, row.canonical) == ("load", "encoder.layers.0.ffn.up.weight")
    assert actions(plan)["encoder.layers.0.ffn.up.weight"] == "initialise"
    with pytest.raises(PlanError, match="too little of the model comes from the sources"):
        make_plan([(renamed, model)], target(encoder_layers=2), require_coverage=0.9)


def test_two_sources_and_two_writers(tmp_path):
    a, b = parent(tmp_path, name="a"), parent(tmp_path, name="bb")
    halves = [(start(mode="init", select=["encoder.**"]), a), (start(mode="init", select=["decoder.**"]), b)]
    plan = make_plan(halves, target())
    assert {r.source for r in plan.rows if r.target.startswith("encoder")} == {0}
    assert {r.source for r in plan.rows if r.target.startswith("decoder")} == {1}
    assert plan.coverage == 1.0
    with pytest.raises(PlanError, match="two sources write"):
        make_plan([(start(mode="init"), a), (start(mode="init"), b)], target())


def test_a_composite_of_two_families_starts_from_two_sources(tmp_path):
    a, b = parent(tmp_path, name="a"), parent(tmp_path, "def", "uvw", name="bb")
    whole = Composite({"left": (FAMILY, a.config), "right": (FAMILY, b.config)})
    sides = {f"{p}.{s}": v for p, m in (("left", a), ("right", b)) for s, v in m.vocabularies.items()}
    t = Target(whole.parameters(), whole.stages, whole.order, whole.behaviour(), sides)
    plan = make_plan(
        [(start(mode="init", into="left"), a), (start(mode="transfer", into="right", drop=["output"]), b)], t
    )
    by = {r.target: r for r in plan.rows}
    assert by["left.encoder.layers.0.ffn.up.weight"].source == 0
    assert by["right.encoder.layers.0.ffn.up.weight"].source == 1
    assert by["right.decoder.output.weight"].action == "initialise"
    values = dict(start_arrays(plan, [a, b], 1))
    assert values["right.encoder.embedding.weight"].tobytes() == b.reading.read("encoder.embedding.weight").tobytes()


def test_a_prefix_that_mounts_no_family(tmp_path):
    a = parent(tmp_path)
    for into in ("encoder", "left"):
        with pytest.raises(PlanError) as caught:
            make_plan([(start(mode="init", into=into), a)], target())
        assert f"`into: {into}` is no part of the model" in problems(caught)
        assert "equal shapes" not in problems(caught)


def test_marian_moments_land_on_their_parameters(fixtures):
    model = open_model(fixtures / "fixtures" / "marian-en-ru-names@last")
    family, c, _ = model.require()
    t = Target(family.parameters(c), family.stages, family.order, family.behaviour(c), model.vocabularies)
    plan = make_plan([(start(mode="continue", data="start"), model)], t)
    assert plan.step == 2500
    slots = start_slots(plan, [model])
    assert len(slots) == 176
    theirs = model.checkpoint.read_slot("encoder_l1_ffn_W1", "m")
    assert slots["encoder.layers.0.ffn.up.weight", "m"].tobytes() == np.ascontiguousarray(theirs.T).tobytes()
    assert (slots["encoder.layers.0.ffn.up.weight", "v"] >= 0).all()
