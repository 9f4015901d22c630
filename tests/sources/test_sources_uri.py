"""Paths and URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from warmstart.errors import SourceError
from warmstart.sources.uri import resolve


def test_local_paths_and_file_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "имя with space"
    file.write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(file) == resolve(str(file)) == resolve(file.as_uri()) == resolve(f"~/{file.name}") == file


@pytest.mark.parametrize("source", ["https://example.org/x", "gs://b/x", "s3://b/x", "hf:org/model", "hf://org/model"])
def test_remote_is_refused_with_what_to_do(source: str) -> None:
    with pytest.raises(SourceError) as caught:
        resolve(source)
    assert caught.value.where == source
    assert "download" in str(caught.value.todo)


def test_missing_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(SourceError) as caught:
        resolve(tmp_path / "modles" / "model.npz")
    assert str(tmp_path / "models") in str(caught.value.todo)


@pytest.mark.parametrize(
    "source", ["", "a\0b", "~nobody-of-this-name/x", "file://elsewhere/x", "file:", "x" * 5000, "file://[x"]
)
def test_unusable_paths(source: str) -> None:
    with pytest.raises(SourceError):
        resolve(source)
