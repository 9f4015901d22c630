"""Lists of recordings as Coqui STT reads them: CSV with ``wav_filename``, ``wav_filesize`` and ``transcript``."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from warmstart.data.speech.example import AudioSource, SpeechExample
from warmstart.errors import DataError, Problem
from warmstart.sources.uri import below, is_remote

SHOWN = 20
BEYOND = "\0beyond"  # what a row is given that holds more than the first line names


def read_csv(path: Path, *, folder: str | Path | None = None, transcripts: bool = True) -> list[SpeechExample]:
    """The examples of a CSV, in its order. Other columns are ignored, ``wav_filesize`` may be missing.

    Names may be URLs; relative ones are below ``folder``, a directory or its URL, or below the CSV's own. Whether there
    are such files is not asked. Raises one ``DataError`` with every bad row: no name, a name that leaves the URL of
    its folder, a size that is no number, columns that are missing or too many.
    """
    folder = path.parent if folder is None else folder
    examples: list[SpeechExample] = []
    problems: list[Problem] = []
    for where, row in read_rows(path, {"wav_filename"} | ({"transcript"} if transcripts else set())):
        name, size = row.get("wav_filename") or "", (row.get("wav_filesize") or "0").strip()
        text = row.get("transcript") if transcripts else None
        if any(part.strip() for part in row.get(BEYOND) or ()):
            what = "a row has too many columns"
            problems.append(Problem(what, where, todo='write a transcript with a comma between quotes: "yes, no"'))
        elif transcripts and text is None:
            problems.append(Problem("a row has too few columns", where))
        elif not name or "\0" in name:
            problems.append(Problem("a row names no file", where, expected="wav_filename"))
        elif not is_remote(name) and is_remote(folder) and _leaves(name):
            problems.append(Problem("a name leaves the directory of its URL", where, found=name, todo="write its URL"))
        elif not (size.isascii() and size.isdigit() and len(size) < 19):
            problems.append(Problem("wav_filesize is no number of bytes", where, found=repr(size)))
        else:
            audio = AudioSource(_place(folder, name))
            examples.append(SpeechExample(str(audio), audio, text, int(size)))
    if problems:
        more = f", the first {SHOWN} are" if len(problems) > SHOWN else ""
        raise DataError(f"{path.name} has {len(problems)} bad rows{more}", where=path, problems=problems[:SHOWN])
    return examples


def _leaves(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _place(folder: str | Path, name: str) -> str | Path:
    if is_remote(name):
        return name
    return below(folder, name) if isinstance(folder, str) else folder / name


def read_rows(path: Path, required: set[str]) -> Iterator[tuple[str, dict[str, str | None]]]:
    """(place, fields) of each row. Raises ``DataError``: it cannot be read, or has no column that is ``required``."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey=BEYOND)
            missing = required - set(reader.fieldnames or ())
            if missing:
                raise DataError(
                    f"the CSV has no column {', '.join(sorted(missing))}",
                    where=path,
                    expected="wav_filename, wav_filesize, transcript in the first line",
                    found=", ".join(reader.fieldnames or ()) or "nothing",
                )
            for row in reader:
                yield f"{path}, line {reader.line_num}", row
    except OSError as error:
        raise DataError("cannot read the CSV", where=path, found=error.strerror or error) from error
    except UnicodeDecodeError as error:
        raise DataError("the CSV is not UTF-8", where=path, found=error) from error
    except csv.Error as error:
        raise DataError("this is no CSV", where=path, found=error) from error
