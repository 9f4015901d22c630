"""Whether the network may be used, and which prefixes lie elsewhere.

Both hold for everything that is opened inside ``with using(...)``; without it the environment decides:
``WARMSTART_OFFLINE=1``, and ``WARMSTART_MIRRORS=gs://t5-data=/mnt/t5-data`` (several are separated by commas).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import field, replace

from warmstart.errors import SourceError
from warmstart.lean import dataclass

_ON, _OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


@dataclass(frozen=True)
class Policy:
    """``offline`` None leaves it to the environment; ``mirrors`` go before the environment's."""

    offline: bool | None = None
    mirrors: Mapping[str, str] = field(default_factory=dict)


_DEFAULT = Policy()
_current: ContextVar[Policy] = ContextVar("policy", default=_DEFAULT)


@contextmanager
def using(*, offline: bool | None = None, mirrors: Mapping[str, str] | None = None) -> Iterator[None]:
    """Inside, sources are opened ``offline`` or not, and ``mirrors`` redirect prefixes. None changes nothing."""
    policy = _current.get()
    if offline is not None:
        policy = replace(policy, offline=offline)
    if mirrors:
        policy = replace(policy, mirrors={**policy.mirrors, **mirrors})
    token = _current.set(policy)
    try:
        yield
    finally:
        _current.reset(token)


def is_offline() -> bool:
    """Whether only the cache may be used.

    Raises:
        SourceError: ``WARMSTART_OFFLINE`` is neither yes nor no.
    """
    chosen = _current.get().offline
    if chosen is not None:
        return chosen
    text = os.environ.get("WARMSTART_OFFLINE", "").strip().lower()
    if text not in (*_ON, *_OFF):
        raise SourceError("WARMSTART_OFFLINE says neither yes nor no", expected="1 or 0", found=repr(text))
    return text in _ON


def mirrors() -> dict[str, str]:
    """Prefix → what stands for it.

    Raises:
        SourceError: ``WARMSTART_MIRRORS`` is not ``URL=PLACE`` and so on.
    """
    found: dict[str, str] = {}
    for item in filter(None, map(str.strip, os.environ.get("WARMSTART_MIRRORS", "").split(","))):
        prefix, sign, place = item.partition("=")
        if not sign or not place or not is_url(prefix):
            raise SourceError(
                "WARMSTART_MIRRORS cannot be read", expected="URL=PLACE, as gs://t5-data=/mnt/t5-data", found=item
            )
        found[prefix] = place
    return {**found, **_current.get().mirrors}


def is_url(text: str) -> bool:
    return re.match(r"(?:[a-z][a-z0-9+.-]*://|hf:)", text, re.IGNORECASE) is not None


def redirected(source: str) -> str:
    """``source``, or what a mirror puts in its place. The longest prefix that ends where a name ends wins."""
    best = ""
    table = mirrors()
    for prefix in table:
        rest = source[len(prefix) :]
        inside = source.startswith(prefix) and (not rest or prefix.endswith(("/", ":")) or rest[0] in "/@?#")
        if inside and len(prefix) > len(best):
            best = prefix
    if not best:
        return source
    rest = source[len(best) :]
    return table[best].rstrip("/") + ("/" if best.endswith("/") and rest else "") + rest
