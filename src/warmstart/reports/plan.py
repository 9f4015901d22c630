"""The plan as a table that fits a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict

from warmstart.bootstrap.plan import Plan, Row


def plan_text(plan: Plan) -> str:
    """Answers, what every parameter starts from (repeated layers folded), what is left behind, and coverage."""
    lines: list[str] = []
    for number, (source, mode, answer) in enumerate(zip(plan.sources, plan.modes, plan.answers, strict=True)):
        lines.append(f"start {number}: {mode} from {source}")
        lines.append("  " + ", ".join(f"{k} {v}" for k, v in asdict(answer).items()))
    lines += ["", f"{'parameter':<38}{'arrays':>7}{'elements':>12}  start"]
    for name, rows in _fold((r.target, r) for r in plan.rows):
        first = rows[0]
        elements = sum(r.size for r in rows)
        what = f"{first.action}: {first.reason}"
        lines.append(f"{name:<38}{len(rows):>7}{elements:>12,}  {what}")
    slots = [s for s in plan.slots if s.action == "load"]
    if slots:
        lines += ["", f"optimizer: {len(slots)} slots carried, step {plan.step}"]
    if plan.leftovers:
        lines += ["", "left behind"]
        for name, reasons in _fold_leftovers(plan):
            lines.append(f"  {name}: {reasons}")
    for note in plan.notes:
        lines.append(f"note: {note}")
    initialised = sum(r.size for r in plan.rows) - sum(r.loaded for r in plan.rows)
    lines += ["", f"coverage: {plan.coverage:.1%} of the elements come from the sources, {initialised:,} are new"]
    return "\n".join(lines) + "\n"


def _fold(rows: Iterable[tuple[str, Row]]) -> list[tuple[str, list[Row]]]:
    """Rows of one kind together: layers, and the parts of a layer, that start alike (``encoder.layers.0-5.*``)."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    layers: dict[tuple[str, str, str], set[int]] = {}
    for name, row in rows:
        layered = re.match(r"(.*\.layers)\.(\d+)\.", name)
        key = (layered.group(1) if layered else name, row.action, row.reason)
        groups.setdefault(key, []).append(row)
        if layered:
            layers.setdefault(key, set()).add(int(layered.group(2)))
    return [(f"{key[0]}.{_ranges(layers[key])}.*" if key in layers else key[0], found) for key, found in groups.items()]


def _ranges(numbers: Iterable[int]) -> str:
    """``0-5,7``."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found)


def _fold_leftovers(plan: Plan) -> list[tuple[str, str]]:
    groups: dict[tuple[int, str], list[str]] = {}
    for item in plan.leftovers:
        groups.setdefault((item.source, item.reason), []).append(item.array)
    out = []
    for (source, reason), arrays in groups.items():
        names = ", ".join(arrays[:3]) + (f" and {len(arrays) - 3} more" if len(arrays) > 3 else "")
        out.append((f"{names} (start {source})" if len(plan.sources) > 1 else names, reason))
    return out
