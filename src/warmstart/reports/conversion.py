"""What a conversion did, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmstart.reports.verification import verification_text

SHOWN = 5


def conversion_text(facts: Mapping[str, Any]) -> str:
    """One line on what was written, then what a careful person wants to know of the ledger, then losses."""
    kind = "" if facts["quantization"] == "none" else f", {facts['quantization']}"
    lines = [f"{facts['destination']}: {facts['dialect']}{kind}, {facts['bytes']:,} bytes"]
    lines += [f"  by the plug-in {plugin}" for plugin in facts.get("plugins", ())]
    lines += [f"  note: {remark}" for remark in facts.get("remarks", ())]
    ledger = facts["ledger"]
    for title, found in (("left behind", ledger["left_behind"]), ("cannot return", ledger["lossy"])):
        names = list(found)
        lines += [f"  {title}: {name}: {found[name]}" for name in names[:SHOWN]]
        if len(names) > SHOWN:
            lines.append(f"  {title}: {len(names) - SHOWN} more")
    if "verification" in facts:
        lines += ["", verification_text(facts["verification"]).rstrip("\n")]
    if "losses" in facts:
        width = max((len(row["array"]) for row in facts["losses"]), default=5)
        lines.append(f"{'array':{width}}  {'stored':8}  {'largest':>10}  {'relative':>10}")
        lines += [
            f"{row['array']:{width}}  {row['dtype']:8}  {row['largest']:10.3g}  {row['relative']:10.3g}"
            for row in facts["losses"]
        ]
    return "\n".join(lines) + "\n"
