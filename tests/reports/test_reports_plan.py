"""The plan as a person reads it: what starts alike is one line that says which layers it means."""

from __future__ import annotations

from warmstart.bootstrap.plan import Leftover, Plan, Row
from warmstart.bootstrap.start import PRESETS
from warmstart.reports.plan import plan_text


def rows() -> list[Row]:
    found = [
        Row("encoder.embedding.weight", (4, 2), "source_embedding", "load rows", "by token", 0, rows=(0, -1, 2, 3))
    ]
    for layer in range(5):
        new = layer in (2, 4)
        action, reason = ("initialise", "the source has no such parameter") if new else ("load", "same name and shape")
        for part in ("weight", "bias"):
            found.append(Row(f"encoder.layers.{layer}.ffn.{part}", (2,), "encoder", action, reason, None if new else 0))
    return found


def test_lines_say_which_layers_start_how() -> None:
    plan = Plan(("a",), ("init",), (PRESETS["init"],), tuple(rows()), leftovers=(Leftover(0, "x", "not selected"),))
    lines = plan_text(plan).splitlines()
    assert lines[0] == "start 0: init from a"
    table = [" ".join(line.split()) for line in lines if line.startswith("encoder.")]
    assert table == [
        "encoder.embedding.weight 1 8 load rows: by token",
        "encoder.layers.0-1,3.* 6 12 load: same name and shape",
        "encoder.layers.2,4.* 4 8 initialise: the source has no such parameter",
    ]
    assert "  x: not selected" in lines
    assert lines[-1] == "coverage: 64.3% of the elements come from the sources, 10 are new"
