"""A server that misbehaves, an empty cache, and no patience between attempts."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from warmstart.sources import fetch
from warmstart.sources.download import Patience

sys.path.insert(0, str(Path(__file__).parent))

from server import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as owner:
        yield owner


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test alone."""
    root = tmp_path / "the-cache"
    monkeypatch.setenv("WARMSTART_CACHE", str(root))
    for name in ("WARMSTART_OFFLINE", "WARMSTART_MIRRORS", "HF_TOKEN", "HF_ENDPOINT", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "Patience", functools.partial(Patience, pause=0.001))
    return root
