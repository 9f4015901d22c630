"""The exception tree.

::

    WarmstartError
    ├── SourceError          a path or URL cannot be used
    ├── FormatError          bytes are not what a format says
    │   ├── UnknownFormat    no format recognises the file; says what it looks like
    │   └── CorruptCheckpoint  a known format, damaged or truncated
    ├── DialectError         arrays or options that no dialect of a family can express
    ├── VocabularyError      tokens and rows do not fit
    ├── BundleError          a model directory cannot be opened or is of a newer version
    ├── PlanError            a start is impossible as configured (carries every problem)
    ├── ConfigError          a configuration is invalid (carries every problem)
    ├── DataError            training or test data cannot be used
    ├── TrainingError        a training cannot go on
    ├── Interrupted          SIGTERM, Ctrl-C or SIGHUP stopped a training, whose state is saved
    ├── VerificationError    two models that should give the same answers do not
    ├── StorageError         a directory or file cannot be written
    └── MissingExtra         an optional library is not installed

Every message follows one grammar: what is wrong, then where, what was expected, what was found and
what to do. The same values are attributes, so that a program need not parse the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from signal import Signals
from typing import Any

from warmstart.lean import dataclass
from warmstart.redact import redact

_NAMES: dict[str, str] = {}


def show_as(directory: object, name: object) -> None:
    """From now on errors say ``name: FILE`` in place of ``directory/FILE``, of which nobody but us knows."""
    _NAMES[str(directory)] = _named(str(name))


def _named(text: str) -> str:
    for directory, name in _NAMES.items():
        text = text.replace(f"{directory}/", f"{name}: ").replace(directory, name)
    return text


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: ``what``, and optionally ``where``, ``expected``, ``found``, ``todo``.

    Secrets in URLs and headers are taken out of all of them, and what an archive holds is named by the archive.
    """

    what: str
    where: str | None = None
    expected: str | None = None
    found: str | None = None
    todo: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, redact(_named(str(value))))

    def __str__(self) -> str:
        labels = (
            ("where", self.where),
            ("expected", self.expected),
            ("found", self.found),
            ("to do", self.todo),
        )
        return "\n".join([self.what, *(f"  {label}: {text}" for label, text in labels if text is not None)])


# Type of pydantic's error → what may stand there, with the values of the error's context
_EXPECTED = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "keys"),
    "string_type": "text",
    "path_type": "a path",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
}


def validation_problems(error: Any, prefix: str = "") -> list[Problem]:
    """Every problem that a ``pydantic.ValidationError`` or :class:`~warmstart.checked.Invalid` lists, or what any other
    error says; ``prefix`` stands before the keys."""
    if not hasattr(error, "errors"):
        return [Problem(f"{prefix.removesuffix('.')}: {error}")]
    keys = ((item, prefix + ".".join(map(str, item["loc"]))) for item in error.errors())
    return [validation_problem(item, key.rstrip(".")) for item, key in keys]


def validation_problem(item: Any, key: str) -> Problem:
    """What one of a ``pydantic.ValidationError``'s ``errors()`` says about ``key``."""
    kind, value = item["type"], item["input"]
    if kind == "missing":
        return Problem(f"{key} is missing")
    if kind == "extra_forbidden":
        return Problem(f"unknown key {key}", todo="remove it")
    if kind in _EXPECTED:
        expected = _EXPECTED[kind].format(**item.get("ctx", {})).replace("'", "").removesuffix(".0")
        return Problem(f"{key} is not valid", expected=expected, found=_as_yaml(value))
    text = item["msg"].removeprefix("Value error, ")
    return Problem(f"{key}: {text}" if key else text, found=None if isinstance(value, dict | list) else _as_yaml(value))


def _as_yaml(value: object) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 200 else text[:200] + "…"


class WarmstartError(Exception):
    """Base of every error that warmstart raises on purpose.

    Attributes:
        rank: the number of the process that raised it, where several make one training.
        elsewhere: another of them says what is wrong.
    """

    rank: int | None = None
    elsewhere: bool = False

    def __init__(
        self,
        what: str,
        *,
        where: object | None = None,
        expected: object | None = None,
        found: object | None = None,
        todo: str | None = None,
        problems: Sequence[Problem] = (),
    ) -> None:
        def text(value: object | None) -> str | None:
            return None if value is None else str(value)

        self.problem = Problem(what, text(where), text(expected), text(found), todo)
        self.problems = tuple(problems)
        super().__init__("\n".join([str(self.problem), *(f"- {p}" for p in self.problems)]))

    def reword(self, change: Callable[[Problem], Problem]) -> None:
        """Says the same in other words."""
        self.problem, self.problems = change(self.problem), tuple(map(change, self.problems))
        self.args = ("\n".join([str(self.problem), *(f"- {p}" for p in self.problems)]),)

    @property
    def what(self) -> str:
        return self.problem.what

    @property
    def where(self) -> str | None:
        return self.problem.where

    @property
    def expected(self) -> str | None:
        return self.problem.expected

    @property
    def found(self) -> str | None:
        return self.problem.found

    @property
    def todo(self) -> str | None:
        return self.problem.todo


class SourceError(WarmstartError):
    """A path or URL does not exist or cannot be used."""


class FormatError(WarmstartError):
    """Bytes on disk are not what their format says."""


class UnknownFormat(FormatError):
    """No format recognises the file."""


class CorruptCheckpoint(FormatError):
    """A checkpoint of a known format is damaged or truncated."""


class DialectError(WarmstartError):
    """No dialect of a family can express these arrays or options."""


class VocabularyError(WarmstartError):
    """Tokens and rows do not fit."""


class BundleError(WarmstartError):
    """A model directory cannot be opened."""


class PlanError(WarmstartError):
    """A start is impossible as configured; ``problems`` holds every reason."""


class ConfigError(WarmstartError):
    """A configuration is invalid; ``problems`` holds every reason."""


class DataError(WarmstartError):
    """Training or test data cannot be used."""


class TrainingError(WarmstartError):
    """A training cannot start or go on."""


class VerificationError(WarmstartError):
    """Two models that should give the same answers do not."""


class Interrupted(WarmstartError):
    """A signal stopped a training, and what was reached is saved. ``status`` is the exit status: 128 + the signal."""

    def __init__(self, signal: Signals, where: object | None = None) -> None:
        self.status = 128 + signal
        super().__init__(
            f"stopped by {signal.name}; what was reached is saved",
            where=where,
            todo="the same command goes on from here",
        )


class StorageError(WarmstartError):
    """A directory or file cannot be written."""


class MissingExtra(WarmstartError):
    """An optional library is not installed; the message says which extra brings it."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed", todo=f"pip install 'warmstart[{extra}]'")
