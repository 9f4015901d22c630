"""``--auto_input_dataset``: one list of recordings, split into ``train.csv``, ``dev.csv`` and ``test.csv`` beside it.

As upstream (``util/auto_input.py``), but that the same list and ``--random_seed`` give the same split.
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.data.permutation import derive_key, permute
from warmstart.data.speech.csv import BEYOND, read_csv, read_rows
from warmstart.errors import DataError, Problem, SourceError
from warmstart.frontends.coqui.flags import Flags
from warmstart.models.deepspeech.dialects.checkpoint import ALPHABET
from warmstart.storage import atomic
from warmstart.vocabularies.alphabet import Alphabet

SETS = ("train", "dev", "test")
LEAST = 3
_INFINITE = 2.58**2 * 0.5 * (1 - 0.5) / 0.01**2  # a sample for 99 % confidence and 1 % error, of endless recordings


def with_dataset(flags: Flags, *, alphabet: bool) -> tuple[Flags, list[str]]:
    """``flags`` with the three lists that ``--auto_input_dataset`` stands for, and what was done.

    Lists that are there are taken; they are written only where none is.

    Args:
        alphabet: whether also ``alphabet.txt`` beside the list is taken, or made of its transcripts.

    Raises:
        SourceError: there is no list, or a directory holds several.
        DataError: it cannot be read or has fewer than three recordings; or some of the three lists are there.
    """
    if not flags["auto_input_dataset"]:
        return flags, []
    path = Path(flags["auto_input_dataset"])
    folder = path if path.is_dir() else path.parent
    lists = {name: folder / f"{name}.csv" for name in SETS}
    source = _source(path, lists)
    there = [file.name for file in lists.values() if file.is_file()]
    said = []
    if len(there) == len(SETS):
        said.append(f"{folder}: {', '.join(there)} are there, and are taken")
    else:
        said.append(_split(source, lists, there, flags["random_seed"]))
    values: dict[str, Any] = {f"{name}_files": [str(file)] for name, file in lists.items()}
    if alphabet and not flags["alphabet_config_path"] and not flags["bytes_output_mode"]:
        values["alphabet_config_path"] = str(folder / ALPHABET)
        if (folder / ALPHABET).is_file():
            said.append(f"the alphabet is {folder / ALPHABET}")
        else:
            files = lists.values() if len(there) == len(SETS) else [source]
            made = Alphabet.of(row["transcript"] or "" for file in files for _, row in read_rows(file, {"transcript"}))
            atomic.write_text(folder / ALPHABET, made.to_text())
            said.append(f"{folder / ALPHABET} is made of the transcripts' characters: {''.join(made.labels)!r}")
    return replace(flags, values={**flags.values, **values}), said


def _source(path: Path, lists: dict[str, Path]) -> Path:
    """The list that ``path`` is, or that lies in it."""
    if not path.is_dir():
        if not path.is_file():
            raise SourceError(
                "--auto_input_dataset does not exist", where=path, todo="give a CSV file, or its directory"
            )
        return path
    found = sorted(set(path.glob("*.csv")) - set(lists.values()))
    if len(found) == 1 or (not found and all(file.is_file() for file in lists.values())):
        return found[0] if found else lists["train"]
    raise SourceError(
        "--auto_input_dataset is a directory without exactly one CSV file to split",
        where=path,
        found=", ".join(file.name for file in found) or "none",
        todo="name the file itself",
    )


def _split(source: Path, lists: dict[str, Path], there: list[str], seed: int) -> str:
    """Write the three lists. Those that an interrupted command left are the same again."""
    required = {"wav_filename", "wav_filesize", "transcript"}
    rows = [row for _, row in read_rows(source, required)]
    read_csv(source)  # every bad row is named before any is written
    if len(rows) < LEAST:
        raise DataError("too few recordings to split", where=source, expected=f"{LEAST} or more", found=len(rows))
    size = sample_size(len(rows))
    order = permute(np.arange(len(rows)), len(rows), derive_key(seed, "auto_input_dataset")).tolist()
    parts = {"train": order[: -2 * size], "dev": order[-2 * size : -size], "test": order[-size:]}
    texts = {name: _text([rows[i] for i in sorted(chosen)]) for name, chosen in parts.items()}
    other = [lists[n] for n in SETS if lists[n].name in there and lists[n].read_bytes() != texts[n].encode()]
    if other:
        raise DataError(
            "some of train.csv, dev.csv and test.csv are there, and are not what this list is split into",
            where=source,
            todo="remove them, or give all three",
            problems=[Problem("another list", str(file)) for file in other],
        )
    for name, text in texts.items():
        atomic.write_text(lists[name], text)
    return f"{source} is split: " + ", ".join(f"{lists[n]} {len(chosen):,}" for n, chosen in parts.items())


def _text(rows: list[dict[str, str | None]]) -> str:
    file = io.StringIO()
    columns = [name for name in rows[0] if name != BEYOND]
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def sample_size(count: int) -> int:
    """How many of ``count`` recordings validate, and as many test: a sample of those that are left for training with
    99 % confidence and 1 % error (Cochran's formula for finite populations), at least one."""
    size = 0
    for train in range(count, 0, -1):
        size = int(_INFINITE / (1 + _INFINITE / train))
        if 2 * size + train <= count:
            break
    return max(size, 1)
