"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from warmstart import cli

# Peers that are not installed here: `make test-interop` sets them up and asks for these.
collect_ignore = [] if os.environ.get("WARMSTART_INTEROP") else ["interop"]


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder with checkpoints and outputs of the original frameworks (its ``fixtures`` and ``data``)."""
    root = os.environ.get("WARMSTART_FIXTURES")
    if not root:
        pytest.skip("WARMSTART_FIXTURES is not set: no checkpoints of the original frameworks at hand")
    return Path(root).resolve()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another, or its user, has in the cache."""
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs ``warmstart ARGUMENTS`` → (status, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["warmstart", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run
