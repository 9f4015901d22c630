"""Subtitles: cut where people would cut them."""

from __future__ import annotations

from warmstart.inference.ctc import Timed
from warmstart.reports.subtitles import CHARACTERS, SECONDS, srt


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


def test_text_without_spaces_is_cut_between_characters() -> None:
    text = "一二三四五六七八九十" * 3
    characters = [Timed(one, k * 0.5, k * 0.5 + 0.5) for k, one in enumerate(text)]
    words = [Timed("短", 0.0, 0.4), Timed(text, 1.0, 16.0), Timed("後", 16.2, 16.5)]
    shifted = [Timed(c.text, c.start + 1, c.end + 1) for c in characters]
    lines = srt(words, [Timed("短", 0.0, 0.4), Timed(" ", 0.4, 1.0), *shifted, Timed(" ", 16.0, 16.2), words[-1]])
    blocks = lines.split("\n\n")
    assert [block.splitlines()[2] for block in blocks] == ["短", text[:12], text[12:24], text[24:] + " 後"]
    assert [block.splitlines()[1] for block in blocks[:2]] == [
        "00:00:00,000 --> 00:00:00,400",
        f"00:00:01,000 --> 00:00:0{1 + SECONDS:.0f},000",
    ]
    assert srt([Timed("word", 0.0, 9.0)]) == "1\n00:00:00,000 --> 00:00:09,000\nword\n"  # nothing says where to cut
