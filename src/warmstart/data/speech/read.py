"""Lists of recordings of any kind, told apart by their names as Coqui STT does."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from warmstart.data.speech.csv import read_csv
from warmstart.data.speech.example import SpeechExample
from warmstart.data.speech.sdb import read_sdb
from warmstart.data.speech.tar import read_tar
from warmstart.errors import DataError
from warmstart.sources.uri import at_home, directory_of, is_remote, local

TARS = (".tar", ".tar.gz", ".tgz", ".tar.zst")
LISTS = (".csv", ".sdb", *TARS)


def is_list(file: str | Path) -> bool:
    """Whether the name is that of a list of recordings."""
    return _name(file).endswith(LISTS)


def read_examples(
    file: str | Path, *, folder: str | Path | None = None, transcripts: bool = True
) -> list[SpeechExample]:
    """The examples of a ``.csv``, ``.sdb`` or tar file, a path or a URL; ``folder``, a path or a URL, is where names in
    a CSV begin, if not beside it.

    Raises:
        DataError: it is no such list or a damaged one.
        SourceError: a URL does not bring it.
    """
    path = local(file)
    if folder is None and isinstance(file, str) and is_remote(file):
        folder = directory_of(file)
    elif folder is not None and not is_remote(folder):
        folder = at_home(folder)
    kind = path.suffix.lower()
    if kind == ".csv":
        return read_csv(path, folder=folder, transcripts=transcripts)
    if kind == ".sdb":
        return read_sdb(path, transcripts=transcripts)
    if is_list(path):
        return read_tar(path, transcripts=transcripts)
    raise DataError("this is no list of recordings", where=file, expected=f"a file called *{', *'.join(LISTS)}")


def _name(file: str | Path) -> str:
    return (urlsplit(str(file)).path if is_remote(file) else Path(file).name).lower()
