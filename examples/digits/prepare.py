"""Makes the lists of recordings of the digits example: English digits for the parent, others for the child.

With two folders these are recordings of people: the Free Spoken Digit Dataset (``recordings/7_jackson_32.wav``) and
Arabic digits (``arabic_digits.csv`` with ``wav_filename`` and ``transcript``). Without folders eSpeak NG speaks English
and Ukrainian digits; its voices of the validation are none of the training's.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from voice import Voice

ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UKRAINIAN = ("нуль", "один", "два", "три", "чотири", "п'ять", "шість", "сім", "вісім", "дев'ять")
TRAIN_VOICES = ("m1", "m2", "m3", "m4", "m5", "f1", "f2", "f3", "f4")
VALIDATION_VOICES = ("m6", "m7", "f5")
SPEEDS, PITCHES = (110, 130, 150, 175, 200), (35, 60)
TRAIN, VALIDATION = 900, 300  # recordings of the child

Row = tuple[Path, str]


def spoken(speaker: Voice, folder: Path, language: str, words: Sequence[str], voices: Sequence[str]) -> list[Row]:
    """Every word by every voice, at every speed and pitch."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for digit, word in enumerate(words):
        for name in voices:
            for speed in SPEEDS:
                for pitch in PITCHES:
                    path = folder / f"{digit}-{name}-{speed}-{pitch}.wav"
                    speaker.write(path, word, f"{language}+{name}", speed=speed, pitch=pitch)
                    rows.append((path, word))
    return rows


def english_people(folder: Path) -> tuple[list[Row], list[Row]]:
    """Training and validation: the first five recordings of each digit and speaker are held out, as the set has it."""
    splits: tuple[list[Row], list[Row]] = ([], [])
    for path in sorted((folder / "recordings").glob("*.wav")):
        digit, _, index = path.stem.split("_")
        splits[int(index) < 5].append((path.resolve(), ENGLISH[int(digit)]))
    return splits


def arabic_people(folder: Path) -> tuple[list[Row], list[Row]]:
    """Training and validation: of each word the same share of its recordings, chosen by a hash of their names."""
    by_word: dict[str, list[Row]] = defaultdict(list)
    with (folder / "arabic_digits.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            by_word[row["transcript"]].append(((folder / row["wav_filename"]).resolve(), row["transcript"]))
    total = sum(map(len, by_word.values()))
    train: list[Row] = []
    validation: list[Row] = []
    for rows in by_word.values():
        rows.sort(key=lambda row: hashlib.sha256(row[0].name.encode()).digest())
        held_out = round(len(rows) * VALIDATION / total)
        validation += rows[:held_out]
        train += rows[held_out:]
    train.sort(key=lambda row: hashlib.sha256(row[0].name.encode()).digest())
    return train[:TRAIN], validation


def write_list(path: Path, rows: Sequence[Row]) -> None:
    """The CSV that Coqui STT reads."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["wav_filename", "wav_filesize", "transcript"])
        writer.writerows((name, name.stat().st_size, transcript) for name, transcript in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--english", type=Path, help="folder of the Free Spoken Digit Dataset")
    parser.add_argument("--arabic", type=Path, help="folder of arabic_digits.csv")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="folder to write to")
    given = parser.parse_args()
    if (given.english is None) != (given.arabic is None):
        parser.error("give both folders, or none")
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if given.english is not None:
        splits = {"parent": english_people(given.english), "child": arabic_people(given.arabic)}
    else:
        speaker = Voice()
        languages = {"parent": ("en-us", ENGLISH), "child": ("uk", UKRAINIAN)}
        splits = {
            name: (
                spoken(speaker, out / name / "train", *language, TRAIN_VOICES),
                spoken(speaker, out / name / "validation", *language, VALIDATION_VOICES),
            )
            for name, language in languages.items()
        }
    for name, (train, validation) in splits.items():
        write_list(out / f"{name}.train.csv", train)
        write_list(out / f"{name}.validation.csv", validation)
        print(f"{name:8}{len(train):>8} recordings to learn from, {len(validation)} to measure on")


if __name__ == "__main__":
    main()
