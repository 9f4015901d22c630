"""One recording and its transcript, before anything of the audio is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from warmstart.errors import DataError, SourceError
from warmstart.lean import dataclass
from warmstart.redact import redact
from warmstart.sources.transport import Unreachable
from warmstart.sources.uri import is_remote, resolve

LONGEST_TRANSCRIPT = 1 << 20  # bytes: more is no transcript but a damaged file


@dataclass(frozen=True)
class AudioSource:
    """An audio file, or ``length`` bytes of a file from ``offset`` on that are one, or (``packed``) are Opus as only
    sample databases hold it.

    ``path`` may be the text of a URL: it is asked for at every use, so that what is used often is taken ``here`` first.
    """

    path: Path | str
    offset: int = 0
    length: int | None = None
    packed: bool = False

    def here(self) -> AudioSource:
        """Itself, or what its URL names, in the cache. Raises as :meth:`file`."""
        return replace(self, path=self.file())

    def file(self) -> Path:
        """The file on this machine.

        Raises:
            DataError: it cannot be fetched.
            SourceError: nothing can be fetched from there.
        """
        if not is_remote(self.path):
            return Path(self.path)
        try:
            return resolve(self.path, alone=True)
        except Unreachable:  # as the next recording would be
            raise
        except SourceError as error:
            raise DataError(
                f"the audio cannot be fetched: {error.what}",
                where=self,
                expected=error.expected,
                found=error.found,
                todo=error.todo,
            ) from error

    def read(self) -> bytes:
        """The whole of it. Raises ``DataError``."""
        try:
            with self.file().open("rb") as file:
                file.seek(self.offset)
                data = file.read(-1 if self.length is None else self.length)
        except OSError as error:
            raise unreadable(error, self) from error
        if self.length is not None and len(data) < self.length:
            raise DataError("the audio is cut off", where=self, expected=f"{self.length} bytes", found=len(data))
        return data

    def __str__(self) -> str:
        path = redact(self.path) if is_remote(self.path) else str(self.path)
        return path if self.length is None else f"{path}, byte {self.offset}"


@dataclass(frozen=True)
class SpeechExample:
    """``where`` names it to people; ``transcript`` is None where none was asked for.

    ``size`` is what its list says of the file in bytes (0 if nothing): Coqui sorts by it, nothing else uses it.
    """

    where: str
    audio: AudioSource
    transcript: str | None
    size: int = 0


def unreadable(error: OSError, where: object) -> DataError:
    """What a file that cannot be opened or read is called."""
    return DataError("the audio cannot be read", where=where, found=error.strerror or error)
