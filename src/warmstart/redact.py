"""What nobody but its owner may read is taken out of every text that warmstart shows or stores.

Secrets come in URLs (``user:password@``, values of a query, as ``?token=`` and ``X-Amz-Signature=``), in headers and as
tokens of the Hugging Face Hub. Of a query only what is known to be harmless is shown, since nobody knows all names that
secrets go by.
"""

from __future__ import annotations

import re

HIDDEN = "***"
HARMLESS = frozenset(
    {"alt", "branch", "commit", "dl", "download", "file", "filename", "format", "generation", "name", "path", "prefix"}
    | {"raw", "ref", "rev", "revision", "version", "versionid", "x-amz-algorithm", "x-amz-date", "x-amz-expires"}
)
"""Names in a query, in small letters, whose values are shown."""

_AUTHORITY = re.compile(
    r"(?<=://)(?:"
    r"[^\s/?#]*"  # up to the last @ before the path
    r"|[^\s/:@]*:(?!\d+(?:[/?#]|\s|$))\S*"  # or a password in which a slash was not written as %2F
    r")@"
)
_VALUE = re.compile(r"(?<=[?&])([^=&?#\s]+)=([^&#\s]*)")
_FRAGMENT = re.compile(r"(?<=\S)#(?!sha256=[0-9a-fA-F]{64}\b)([\w.-]+)=\S*")
_HEADER = re.compile(
    r"\b((?:proxy-)?authorization|(?:set-)?cookie|x-(?:amz|goog|ms|api|auth)-[\w-]*(?:token|key|signature)|private-token)"
    r"(['\"]?\s*:\s*)[^\r\n]*",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\b(hf_|ya29\.|gh[oprsu]_|github_pat_|glpat-|AKIA|ASIA)[\w.-]{8,}|\b(Bearer)\s+[\w.~+/=-]{8,}")


def redact(text: object) -> str:
    """``str(text)`` with every secret that can be told from its place replaced by ``***``."""
    shown = str(text)
    if "://" in shown or ":" in shown:
        shown = _AUTHORITY.sub(f"{HIDDEN}@", shown)
        shown = _VALUE.sub(_value, shown)
        shown = _FRAGMENT.sub(rf"#\1={HIDDEN}", shown)
    shown = _HEADER.sub(rf"\1\2{HIDDEN}", shown)
    return _TOKEN.sub(lambda match: f"{match[1] or match[2] + ' '}{HIDDEN}", shown)


def _value(match: re.Match[str]) -> str:
    name, value = match.groups()
    harmless = name.lower() in HARMLESS and ";" not in value
    return match[0] if harmless or not value else f"{name}={HIDDEN}"
