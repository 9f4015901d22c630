"""From what a person wrote to a path that exists."""

from __future__ import annotations

import os
import re
from pathlib import Path

from warmstart.errors import SourceError
from warmstart.redact import HIDDEN, redact

_SCHEMES = ("http", "https", "gs", "s3", "hf")
_REMOTE = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://|(https?|gs|s3|hf|ftp):", re.IGNORECASE)
_SUM = re.compile(r"#sha256=([0-9a-fA-F]*)$")
_PLACEHOLDER = re.compile(r"\{[^{}/\s]*\}")


def is_remote(source: str | Path) -> bool:
    """Whether ``source`` is a URL of another machine (by its spelling)."""
    return isinstance(source, str) and _REMOTE.match(source) is not None


def shown(source: str | Path) -> str:
    """``source`` for people and files: a URL without its secrets, of a path the last name."""
    return redact(source) if is_remote(source) else Path(source).name


def resolve(
    source: str | Path,
    *,
    offline: bool | None = None,
    sha256: str | None = None,
    choice: str | None = None,
    alone: bool = False,
) -> Path:
    """The existing path that ``source`` names: a local path (with ``~``), or in the cache what a URL names (``file:``,
    ``http:``, ``https:``, ``gs:``, ``s3:``, ``hf:owner/name@revision/path``).

    A file from elsewhere lies there under its own name, beside the small files that belong to it. Mirrors (see
    :mod:`warmstart.sources.policy`) come first.

    Args:
        offline: ask nobody; None leaves it to ``using`` and to ``WARMSTART_OFFLINE``.
        sha256: what the file must have, hex; also written ``URL#sha256=…``.
        choice: of a remote directory with several checkpoints, bring this one only.
        alone: a URL is that of one file among many, which is brought without a word; a directory is an error.

    Raises:
        SourceError: it does not exist (the message names what is nearest), may not be read, or is another file.
        MissingExtra: a library for this scheme is not installed.
        StorageError: the cache cannot be written.
    """
    where, sum_ = prepared(source, sha256)
    if isinstance(where, Path):
        return where
    from warmstart.sources.policy import is_offline
    from warmstart.sources.remote import obtain

    off = is_offline() if offline is None else offline
    return obtain(where, sha256=sum_, offline=off, choice=choice, alone=alone, progress=not alone).path


def at_home(path: str | Path) -> Path:
    """``path`` with the user's directory for ``~``, which no shell puts into a configuration."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user
        return Path(path)


def local(file: str | Path) -> Path:
    """Where a file of data lies: a path, whether it exists or not; what a URL names is brought into the cache.

    Raises of URLs what :func:`resolve` raises.
    """
    return resolve(file) if is_remote(file) else at_home(file)


def directory_of(url: str) -> str:
    """The URL of the directory of the file at ``url``, with ``/`` at its end."""
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(_SUM.sub("", url))
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rpartition("/")[0] + "/", parts.query, parts.fragment))


def below(directory: str, name: str) -> str:
    """The URL of the file ``name`` in the directory of a URL. Over http the directory's query goes with it."""
    from urllib.parse import quote, urlsplit, urlunsplit

    parts = urlsplit(directory)
    if parts.scheme.lower() not in ("http", "https"):
        return f"{directory.rstrip('/')}/{name}"
    path = parts.path if parts.path.endswith("/") else f"{parts.path}/"
    return urlunsplit((parts.scheme, parts.netloc, path + quote(name), parts.query, ""))


def split_choice(source: str | Path) -> tuple[str | Path, str | None]:
    """``DIRECTORY@NAME`` as (directory, name); (``source``, None) where the whole is a path or nothing is chosen.

    The ``@`` of ``hf:owner/name@revision`` is the revision's; ``hf:owner/name@revision/@best`` chooses. An ``@`` in a
    URL's host or query chooses nothing.
    """
    text = str(source)
    if is_remote(text) and not text.startswith("hf:") and ("?" in text or text.count("/") < 3):
        return source, None
    place, at, choice = text.rpartition("@")
    if not at or not place or not choice or "/" in choice or os.path.exists(text):
        return source, None
    if text.startswith("hf:") and not place.endswith("/"):
        return source, None
    return (Path(place) if isinstance(source, Path) else place.rstrip("/") or "/"), choice


def place_of(source: str | Path) -> Path | None:
    """Where on this machine ``source`` lies (of an archive, the archive), whether it exists or not; None where it is
    brought from elsewhere."""
    place, _ = split_choice(source)
    if isinstance(place, str):
        place, _ = _without_sum(place, None)
        if is_remote(place):
            from warmstart.sources.policy import redirected

            place = redirected(place)
            if is_remote(place):
                return None
        place = _local(place)
    return at_home(place)


def prepared(source: str | Path, sha256: str | None) -> tuple[Path | str, str | None]:
    """A local path that exists, or a URL to be asked for with the sum that it must have; mirrors are applied."""
    if isinstance(source, Path):
        return _checked(_existing(str(source)), sha256), None
    text, sha256 = _without_sum(source, sha256)
    if is_remote(text):
        from warmstart.sources.policy import redirected

        _refuse_placeholders(text)
        found = redirected(text)
        if found != text:
            _refuse_placeholders(found)
            if not is_remote(found):
                return _checked(_mirror(found, text), sha256), None
        return _url(found), sha256
    return _checked(_existing(_local(text)), sha256), None


def _url(text: str) -> str:
    scheme, _, rest = text.partition(":")
    if scheme.lower() not in _SCHEMES or (scheme.lower() != "hf" and not rest.startswith("//")):
        raise SourceError(
            "this cannot be read from",
            where=text,
            expected="a path, or a URL that begins with file:, http://, https://, gs://, s3:// or hf:",
            todo="download it and give its path",
        )
    if HIDDEN in rest:
        raise SourceError(
            "this URL was stored without its secrets", where=text, todo=f"write them in place of {HIDDEN}"
        )
    if "#" in rest and scheme.lower() in ("http", "https", "hf"):
        raise SourceError("the URL has a fragment", where=text, expected="nothing after #, or #sha256=…")
    from urllib.parse import urlsplit

    try:
        urlsplit(text).port  # noqa: B018
    except ValueError as error:
        raise SourceError("not a URL", where=text, found=error) from None
    return f"{scheme.lower()}:{rest}"


def _without_sum(text: str, sha256: str | None) -> tuple[str, str | None]:
    match = _SUM.search(text)
    given = [s.lower() for s in (sha256, match and match[1]) if s is not None]
    for sum_ in given:
        if not re.fullmatch(r"[0-9a-f]{64}", sum_):
            raise SourceError("not a SHA-256", where=text, expected="64 digits from 0 to f", found=sum_)
    if len(set(given)) > 1:
        raise SourceError("two sums for one file", where=text, found=" and ".join(given))
    return (text[: match.start()] if match else text), (given[0] if given else None)


def _refuse_placeholders(text: str) -> None:
    left = _PLACEHOLDER.findall(text)
    if left:
        raise SourceError(
            "the URL has a placeholder that nobody filled in",
            where=text,
            found=", ".join(dict.fromkeys(left)),
            todo="write what it stands for",
        )


def _checked(path: Path, sha256: str | None) -> Path:
    if sha256 is not None:
        import hashlib

        if not path.is_file():
            raise SourceError("a directory has no SHA-256", where=path, todo="give it for a file")
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256:
            raise SourceError(
                "the file is not the expected one", where=path, expected=f"SHA-256 {sha256}", found=f"SHA-256 {found}"
            )
    return path


def _mirror(found: str, source: str) -> Path:
    try:
        return _existing(_local(found))
    except SourceError as error:
        raise SourceError(
            error.what, where=f"{error.where}, the mirror of {redact(source)}", found=error.found, todo=error.todo
        ) from None


def _local(source: str) -> str:
    if not source.lower().startswith("file:"):
        return source
    from urllib.parse import unquote, urlsplit

    try:
        parts = urlsplit(source)
    except ValueError:
        parts = None
    if parts is None or parts.netloc not in ("", "localhost") or not parts.path:
        raise SourceError("not a file: URL of this machine", where=source, expected="file:///path/to/it")
    return unquote(parts.path)


def _similar(path: Path) -> str | None:
    """What a missing ``path`` was probably meant to be: the nearest name where the path breaks off."""
    existing = path
    missing = path
    while not existing.exists() and existing != existing.parent:
        missing, existing = existing, existing.parent
    if not existing.is_dir():
        return None
    import difflib

    near = difflib.get_close_matches(missing.name, sorted(entry.name for entry in existing.iterdir()), n=3)
    return " or ".join(str(existing / name) for name in near) or None


def _existing(text: str) -> Path:
    try:
        path = Path(text).expanduser()
        if text and path.exists():
            return path
        if path.is_symlink():
            raise SourceError("a link leads nowhere", where=path, found=path.readlink())
        near = _similar(path) if text else None
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError("this path cannot be used", where=repr(text), found=error) from error
    begins = ", which begins in the current directory" if text and not path.is_absolute() else ""
    raise SourceError(
        "no such file or directory",
        where=path if text else "an empty path",
        todo=f"did you mean {near}?" if near else f"check the path{begins}",
    )
