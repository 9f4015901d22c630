"""WebDatasets: tar files in which ``KEY.wav`` (or flac, ogg, opus, mp3) and ``KEY.txt`` are one example."""

from __future__ import annotations

import mmap
import re
import tarfile
from pathlib import Path, PurePosixPath

from warmstart.data.speech.example import LONGEST_TRANSCRIPT, AudioSource, SpeechExample
from warmstart.errors import CorruptCheckpoint, DataError, Problem
from warmstart.formats.archives import GZIP, ZSTD
from warmstart.formats.mapped import head
from warmstart.formats.unpacking import unpack

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
SHOWN = 20
_SOMETHING = re.compile(rb"[^\0]")
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}


def read_tar(path: Path, *, transcripts: bool = True) -> list[SpeechExample]:
    """The examples of a tar file, in its order. Nothing is unpacked: audio is read where it lies. What gzip or zstd
    compressed is decompressed once, into the cache.

    Other files of a key are ignored. Raises one ``DataError`` with all that is wrong: audio without transcript or a
    transcript without audio, names that are no place in a directory, links, parts beyond the end of the file.
    """
    problems: list[Problem] = []
    audio: dict[str, AudioSource] = {}
    texts: dict[str, str] = {}
    stored = _decompressed(path)
    try:
        # Of mapped memory no more is read than there is, whatever a header says.
        with (
            stored.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory,
            tarfile.open(fileobj=memory, mode="r:") as archive,
        ):
            total = len(memory)
            for member in archive:
                name = PurePosixPath(member.name)
                key, extension = str(name.with_suffix("")), name.suffix.lower()
                known = extension in EXTENSIONS or extension == ".txt"
                if member.isdir() or not known:
                    continue
                where = f"{path}, {member.name}"
                end = member.offset_data + member.size
                if name.is_absolute() or ".." in name.parts:
                    problems.append(Problem("a name leaves the directory", where))
                elif not member.isreg() or member.issparse() or member.size < 0 or end > total:
                    problems.append(Problem("this is no whole file", where))
                elif key in (texts if extension == ".txt" else audio):
                    problems.append(Problem("there are two of this name", where))
                elif extension in EXTENSIONS:
                    audio[key] = AudioSource(stored, member.offset_data, member.size)
                elif transcripts:
                    text = _text(stored, member, where, problems)
                    if text is not None:
                        texts[key] = text
            if not problems:
                _check_end(memory, archive.offset)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DataError("this is no tar file, or a damaged one", where=path, found=error) from error
    except OSError as error:
        raise DataError("cannot read the tar file", where=path, found=error.strerror or error) from error
    if transcripts and not problems:
        lonely = [key for key in (*audio, *texts) if (key in audio) != (key in texts)]
        problems = [Problem("audio and transcript do not come together", f"{path}, {key}") for key in lonely]
    if problems:
        more = f", the first {SHOWN} are" if len(problems) > SHOWN else ""
        raise DataError(f"{path.name} has {len(problems)} bad parts{more}", where=path, problems=problems[:SHOWN])
    return [SpeechExample(f"{path}, {key}", part, texts.get(key), part.length or 0) for key, part in audio.items()]


def _check_end(memory: mmap.mmap, at: int) -> None:
    """Whether the last member ends at ``at``: ``tarfile`` also stops, and says nothing, where a header is damaged or
    missing. Raises ``tarfile.TarError``."""
    rest = _SOMETHING.search(memory, at)
    if rest is not None:
        raise tarfile.ReadError(f"no header of a member at byte {at:,}, but more than zeros behind it")
    if len(memory) - at < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it ends at byte {len(memory):,}, without the zeros that mark the end")


def _decompressed(path: Path) -> Path:
    """Where the tar file lies that ``path`` is or holds."""
    try:
        start = head(path, 8)
        if not start.startswith((GZIP, ZSTD)):
            tool = next((tool for magic, tool in _OTHERS.items() if start.startswith(magic)), None)
            if tool is not None:
                raise DataError(
                    "this compression is not read", where=path, todo=f"decompress it: {tool} -d {path.name}"
                )
            return path
        return unpack(path, only_decompress=True)
    except OSError as error:
        raise DataError("cannot read the tar file", where=path, found=error.strerror or error) from error
    except CorruptCheckpoint as error:
        raise DataError("the tar file is damaged", where=path, found=error.found, todo=error.todo) from error


def _text(path: Path, member: tarfile.TarInfo, where: str, problems: list[Problem]) -> str | None:
    if member.size > LONGEST_TRANSCRIPT:
        problems.append(Problem("a transcript is longer than a mebibyte", where))
        return None
    try:
        return AudioSource(path, member.offset_data, member.size).read().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        problems.append(Problem("a transcript is not UTF-8", where, found=str(error)))
        return None
