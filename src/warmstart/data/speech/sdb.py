"""Sample databases (``.sdb``) of DeepSpeech and Coqui STT.

``SAMPLEDB``, u64 size of the JSON that follows with its ``schema`` (a column's ``content`` and ``mime-type``), u64 size
and u64 number of the samples, the samples: u32 size, then for each column u32 size and bytes. Integers are big-endian.
The index of offsets at the end says nothing more, and is not read. Source: Coqui's ``util/sample_collections.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

from warmstart.data.speech.example import LONGEST_TRANSCRIPT, AudioSource, SpeechExample
from warmstart.errors import DataError

MAGIC = b"SAMPLEDB"
LONGEST_SCHEMA = 1 << 20
PACKED = ("application/vnd.mozilla.opus", "application/vnd.deepspeech.opus")
READABLE = ("audio/wav", "audio/flac", "audio/vorbis", "audio/ogg;codecs=opus", "audio/ogg; codecs=opus")


def read_sdb(path: Path, *, transcripts: bool = True) -> list[SpeechExample]:
    """The examples of a sample database, in its order; audio is read where it lies.

    Raises ``DataError``: another file, a part that reaches beyond the one that holds it, no column of speech or
    transcripts, audio of an unknown kind.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path, path.stat().st_size, transcripts)
    except OSError as error:
        raise DataError("cannot read the sample database", where=path, found=error.strerror or error) from error


def _read(file: BinaryIO, path: Path, total: int, transcripts: bool) -> list[SpeechExample]:
    if file.read(len(MAGIC)) != MAGIC:
        raise DataError("this is no sample database", where=path, expected=f"{MAGIC.decode()} at its beginning")
    columns = _schema(file, path, total)
    speech, text = _column(columns, "speech"), _column(columns, "transcript")
    if speech is None or (text is None and transcripts):
        missing = "speech" if speech is None else "transcripts"
        raise DataError(f"the sample database has no {missing}", where=path)
    packed = _is_packed(str(columns[speech].get("mime-type")), path)
    size, count = _number(file, 8, path), _number(file, 8, path)
    end = file.tell() - 8 + size
    if size < 8:  # of the number alone: Coqui's writer fills both in when it has written everything
        raise _damaged(path, "its writer never completed it")
    if end > total or count > size // 4:
        raise _damaged(path, "the samples reach beyond its end")
    examples = []
    for number in range(count):
        stop = _number(file, 4, path) + file.tell()
        if stop > end:
            raise _damaged(path, f"sample {number} reaches beyond the samples")
        parts = []
        for _ in columns:
            length, offset = _number(file, 4, path), file.tell()
            if offset + length > stop:
                raise _damaged(path, f"a column of sample {number} reaches beyond it")
            parts.append((offset, length))
            file.seek(length, 1)
        where = f"{path}, sample {number}"
        transcript = _transcript(file, *parts[text], where) if text is not None and transcripts else None
        audio = AudioSource(path, *parts[speech], packed)
        examples.append(SpeechExample(where, audio, transcript, parts[speech][1]))
        file.seek(stop)
    if file.tell() < end:
        raise _damaged(path, f"{end - file.tell():,} bytes behind the last of its {count:,} samples")
    return examples


def _schema(file: BinaryIO, path: Path, total: int) -> list[dict[str, Any]]:
    size = _number(file, 8, path)
    if size > min(total, LONGEST_SCHEMA):
        raise _damaged(path, f"a schema of {size} bytes")
    try:
        schema = json.loads(file.read(size))["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, "its schema is no JSON with 'schema'") from error
    if not isinstance(schema, list) or not all(isinstance(column, dict) for column in schema) or len(schema) > 100:
        raise _damaged(path, "its schema is no list of columns")
    return schema


def _column(columns: list[dict[str, Any]], content: str) -> int | None:
    return next((i for i, column in enumerate(columns) if column.get("content") == content), None)


def _is_packed(mime: str, path: Path) -> bool:
    if mime not in (*READABLE, *PACKED):
        known = ", ".join((*READABLE, *PACKED))
        raise DataError("the audio of the database is of an unknown kind", where=path, expected=known, found=mime)
    return mime in PACKED


def _transcript(file: BinaryIO, offset: int, length: int, where: str) -> str:
    if length > LONGEST_TRANSCRIPT:
        raise DataError("a transcript is longer than a mebibyte", where=where)
    file.seek(offset)
    try:
        return file.read(length).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError("a transcript is not UTF-8", where=where, found=error) from error


def _number(file: BinaryIO, width: int, path: Path) -> int:
    data = file.read(width)
    if len(data) < width:
        raise _damaged(path, "it ends too early")
    return int.from_bytes(data, "big")


def _damaged(path: Path, found: str) -> DataError:
    return DataError("the sample database is damaged", where=path, found=found)
