"""Preprocessors that a configuration can name; each works on ``source`` and ``target``."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from warmstart.data.task import Example, Preprocessor


def _on_text(change: Callable[[str], str]) -> Preprocessor:
    def preprocess(example: Example) -> Example:
        return {**example, **{name: change(example[name]) for name in ("source", "target") if name in example}}

    return preprocess


PREPROCESSORS: dict[str, Preprocessor] = {
    "strip": _on_text(str.strip),
    "lowercase": _on_text(str.lower),
    "nfc": _on_text(lambda text: unicodedata.normalize("NFC", text)),
}
