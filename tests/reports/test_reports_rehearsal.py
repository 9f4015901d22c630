"""The report of a rehearsal says units that a person reads."""

from __future__ import annotations

from typing import Any

import pytest

from warmstart.reports.rehearsal import rehearsal_text

FACTS: dict[str, Any] = {
    "device": "cpu",
    "steps": 200_000,
    "evaluations": 41,
    "longest": "67 rows of 59 source and 61 target tokens",
    "longest_seconds": 1.219,
    "step_seconds": 0.5254,
    "work": "tokens",
    "work_per_second": 7424.4,
    "evaluation_seconds": 75.0,
    "total_seconds": 108_155.0,
    "memory": 844_000_000,
    "memory_there": 25_276_502_016,
    "memory_more": 1_500_000_000,
    "checkpoint_bytes": 13_950_000,
    "disk_free": 77_300_000_000,
    "notes": ("too little of something",),
}


def test_every_figure_is_said() -> None:
    assert rehearsal_text(FACTS).splitlines() == [
        "memory        844 MB of 25.3 GB, and up to 1.5 GB more when batches of other shapes come",
        "longest batch 67 rows of 59 source and 61 target tokens: 1.22 s an update",
        "update        525 ms, 7,424 target tokens a second",
        "evaluation    75 s",
        "in all        1 d 6 h 3 min: 200,000 updates, 41 evaluations",
        "checkpoint    13.9 MB; 77.3 GB are free",
        "note: too little of something",
        "nothing was trained, and no run was begun or changed",
    ]
    assert rehearsal_text(FACTS | {"memory_more": 0}).splitlines()[0] == "memory        844 MB of 25.3 GB"


def test_speech_is_counted_in_seconds_of_audio() -> None:
    speech = rehearsal_text(FACTS | {"work": "audio_seconds", "work_per_second": 412.6})
    assert "update        525 ms, 413 seconds of audio a second" in speech.splitlines()


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0 s"), (89.0, "89 s"), (3600.0, "1 h"), (5430.0, "1 h 30 min")])
def test_durations(seconds: float, text: str) -> None:
    assert f"in all        {text}: " in rehearsal_text(FACTS | {"total_seconds": seconds})
