"""What a rehearsal of a training found, as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmstart.reports.text import readable_size


def rehearsal_text(facts: Mapping[str, Any]) -> str:
    """Lines about memory, time and disk.

    Args:
        facts: the fields of ``training.rehearsal.Rehearsal``.
    """
    work = {"tokens": "target tokens", "audio_seconds": "seconds of audio"}.get(facts["work"], facts["work"])
    more = ""
    if facts["memory_more"]:
        more = f", and up to {readable_size(facts['memory_more'])} more when batches of other shapes come"
    lines = [
        f"memory        {readable_size(facts['memory'])} of {readable_size(facts['memory_there'])}{more}",
        f"longest batch {facts['longest']}: {_seconds(facts['longest_seconds'])} an update",
        f"update        {_seconds(facts['step_seconds'])}, {facts['work_per_second']:,.0f} {work} a second",
        f"evaluation    {_seconds(facts['evaluation_seconds'])}",
        f"in all        {_duration(facts['total_seconds'])}: {facts['steps']:,} updates, "
        f"{facts['evaluations']:,} evaluations",
        f"checkpoint    {readable_size(facts['checkpoint_bytes'])}; {readable_size(facts['disk_free'])} are free",
    ]
    lines += [f"note: {note}" for note in facts["notes"]]
    return "\n".join([*lines, "nothing was trained, and no run was begun or changed"]) + "\n"


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.3g} s"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"))
    return " ".join(f"{value} {unit}" for value, unit in parts if value)
