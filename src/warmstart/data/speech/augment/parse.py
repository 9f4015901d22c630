"""``NAME[key=value,…]``, as Coqui STT's ``--augment`` takes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from warmstart.data.speech.augment.anywhere import ANYWHERE
from warmstart.data.speech.augment.base import DOMAINS, Augmentation, Domain
from warmstart.data.speech.augment.codec import Codec
from warmstart.data.speech.augment.ranges import Numbers
from warmstart.data.speech.augment.signal import Overlay, Resample, Reverb, Volume
from warmstart.data.speech.augment.spectrogram import FrequencyMask, Pitch, Tempo, Warp
from warmstart.errors import ConfigError, Problem
from warmstart.sources.uri import is_remote

KINDS: tuple[type[Augmentation], ...] = (
    *(Overlay, Codec, Reverb, Resample, Volume),
    *(Pitch, Tempo, Warp, FrequencyMask),
    *ANYWHERE,
)
TABLE = {kind.name: kind for kind in KINDS}
ALIASES: dict[type[Augmentation], dict[str, str]] = {  # as Coqui's manual and other versions of it call them
    Warp: {"nt": "num_t", "nf": "num_f", "wt": "warp_t", "wf": "warp_f"}
}
_FORM = re.compile(r"([a-z_]+)(?:\[(.*)\])?", re.DOTALL)


def parse_augmentations(texts: Sequence[str]) -> tuple[Augmentation, ...]:
    """The augmentations, in order. Raises one ``ConfigError`` with everything that is wrong, and what is allowed."""
    problems: list[Problem] = []
    found = []
    for text in texts:
        augmentation = _parse(text, problems)
        if augmentation is not None:
            found.append(augmentation)
    if problems:
        raise ConfigError("these augmentations are not valid", problems=problems)
    return tuple(found)


def _parse(text: str, problems: list[Problem]) -> Augmentation | None:
    match = _FORM.fullmatch(text.strip())
    if match is None:
        problems.append(Problem("this is no augmentation", where=text, expected="NAME or NAME[key=value,…]"))
        return None
    name, body = match.groups()
    if name not in TABLE:
        near = get_close_matches(name, TABLE, n=1)
        todo = f"did you mean {near[0]}?" if near else None
        problems.append(Problem(f"there is no augmentation {name!r}", text, ", ".join(TABLE), todo=todo))
        return None
    kind, before = TABLE[name], len(problems)
    keys = _keys(kind)
    values: dict[str, Any] = {}
    for part in filter(None, map(str.strip, (body or "").split(","))):
        key, sign, value = map(str.strip, part.partition("="))
        key = ALIASES.get(kind, {}).get(key, key)
        if not sign or key not in keys:
            what = f"{name} has no key {key!r}" if sign else f"{part!r} is no key=value"
            problems.append(Problem(what, text, expected=", ".join(keys)))
        elif key in values:
            problems.append(Problem(f"{name} is given {key} twice", text))
        else:
            try:
                values[key] = _value(kind, key, value)
            except ValueError as error:
                problems.append(Problem(f"{key} of {name}: {error}", text))
    for key, field in keys.items():
        if field.default is MISSING and key not in values and len(problems) == before:
            problems.append(Problem(f"{name} needs {key}=…", text))
    return None if len(problems) > before else kind(**values)


def _keys(kind: type[Augmentation]) -> dict[str, Field[Any]]:
    """Of those with one domain only, ``domain`` is no key."""
    return {field.name: field for field in fields(kind) if field.name != "domain" or kind in ANYWHERE}


def _value(kind: type[Augmentation], key: str, text: str) -> Any:
    """Raises ``ValueError`` with what is allowed."""
    hint = get_type_hints(kind)[key]
    if key == "domain":
        return _domain(text)
    if key == "source":
        if not text:
            raise ValueError("a path or a URL is expected")
        return text if is_remote(text) else Path(text)
    value = hint.parse(text) if isinstance(hint, type) and issubclass(hint, Numbers) else _number(text)
    low, high = (0.0, 1.0) if key == "p" else kind.limits.get(key, (float("-inf"), float("inf")))
    lowest, highest = (value.lowest, value.highest) if isinstance(value, Numbers) else (value, value)
    if lowest < low or highest > high:
        raise ValueError(f"{text!r} reaches from {lowest:g} to {highest:g}; {low:g} to {high:g} is allowed")
    return value


def _number(text: str) -> float:
    value = Numbers.parse(text)
    if value.moves or value.radius:
        raise ValueError(f"{text!r} is no single number")
    return value.start


def _domain(text: str) -> Domain:
    for domain in DOMAINS:
        if text == domain:
            return domain
    raise ValueError(f"{text!r} is none of {', '.join(DOMAINS)}")
