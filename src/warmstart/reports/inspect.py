"""A checkpoint's facts as text that fits a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def inspect_text(facts: Mapping[str, Any]) -> str:
    """Format, family, configuration, and arrays with repeated layers folded."""
    lines = [f"{facts['source']}"]
    what = f"{facts['family']}, written by {facts['dialect']}" if facts["family"] else "no known family"
    lines.append(f"  format {facts['format']}: {what}")
    entries = facts["entries"]
    elements = sum(_product(e["shape"]) for e in entries)
    lines.append(f"  {len(entries)} arrays, {elements:,} elements, {sum(e['nbytes'] for e in entries):,} bytes")
    if facts["step"] is not None:
        lines.append(f"  step {facts['step']:,}")
    if facts["slots"]:
        kinds = ", ".join(sorted({s["slot"] for s in facts["slots"]}))
        lines.append(f"  optimizer: {len(facts['slots'])} slots ({kinds})")
    for side, v in facts["vocabularies"].items():
        lines.append(f"  {side} vocabulary: {v['size']:,} tokens ({v['kind']}), {v['fingerprint'][:12]}")
    if facts["config"]:
        text = ", ".join(f"{k} {v}" for k, v in facts["config"].items() if v is not None)
        lines += _wrap(text)
    for note in facts["notes"]:
        lines += [f"  note: {line}" for line in note.splitlines()]
    lines += ["", f"{'array':<44}{'count':>6}  {'shape':<18}dtype"]
    groups: dict[tuple[str, str, str], int] = {}
    for e in entries:
        key = (re.sub(r"\d+", "*", e["name"]), str(e["shape"]), e["dtype"])
        groups[key] = groups.get(key, 0) + 1
    for (name, shape, dtype), count in groups.items():
        lines.append(f"{name:<44}{count:>6}  {shape:<18}{dtype}")
    return "\n".join(lines) + "\n"


def _product(shape: list[int]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _wrap(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 78, initial_indent="  ", subsequent_indent="  ")
