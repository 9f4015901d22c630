"""Subtitles: cut where people would cut them."""

from __future__ import annotations

from warmstart.inference.ctc import Timed
from warmstart.reports.subtitles import CHARACTERS, srt


def test_times_and_texts() -> None:
    words = [Timed("she", 0.1, 0.3), Timed("had", 0.4, 0.52), Timed("your", 3661.0, 3661.9996)]
    assert srt(words) == (
        "1\n00:00:00,100 --> 00:00:00,520\nshe had\n\n2\n01:01:01,000 --> 01:01:02,000\nyour\n"
    )  # a pause begins a new one


def test_nothing_is_nothing() -> None:
    assert srt([]) == ""


def test_long_speech_is_cut_by_time_and_by_length() -> None:
    slow = [Timed(f"w{k}", k * 0.7, k * 0.7 + 0.6) for k in range(20)]
    starts = [line for line in srt(slow).splitlines() if "-->" in line]
    assert len(starts) == 3  # 14 s
    quick = [Timed("word" * 5, k * 0.1, k * 0.1 + 0.1) for k in range(20)]
    texts = srt(quick).splitlines()[2::4]
    assert all(len(text) <= CHARACTERS for text in texts)
    assert sum(len(text.split()) for text in texts) == 20
