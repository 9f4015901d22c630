"""Lists of recordings of any kind, told apart by their names as Coqui STT does."""

from __future__ import annotations

from pathlib import Path

from warmstart.data.speech.csv import read_csv
from warmstart.data.speech.example import SpeechExample
from warmstart.data.speech.sdb import read_sdb
from warmstart.data.speech.tar import read_tar
from warmstart.errors import DataError

TARS = (".tar", ".tar.gz", ".tgz", ".tar.zst")
LISTS = (".csv", ".sdb", *TARS)


def is_list(path: Path) -> bool:
    """Whether the name is that of a list of recordings."""
    return path.name.lower().endswith(LISTS)


def read_examples(path: Path, *, folder: Path | None = None, transcripts: bool = True) -> list[SpeechExample]:
    """The examples of a ``.csv``, ``.sdb`` or tar file; ``folder`` is where names in a CSV begin.

    Raises ``DataError``.
    """
    kind = path.suffix.lower()
    if kind == ".csv":
        return read_csv(path, folder=folder, transcripts=transcripts)
    if kind == ".sdb":
        return read_sdb(path, transcripts=transcripts)
    if is_list(path):
        return read_tar(path, transcripts=transcripts)
    raise DataError("this is no list of recordings", where=path, expected=f"a file called *{', *'.join(LISTS)}")
