"""What errors say, whatever they were given."""

from pathlib import Path

import pytest

from warmstart import errors


def test_what_an_archive_held_is_named_by_it_and_numbers_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(errors, "_NAMES", {})
    errors.show_as(tmp_path, "model.zip")
    found: object = 6  # as parsed flags and values of configurations come
    problem = errors.Problem("wrong", where=f"{tmp_path}/config.yml", found=found)  # type: ignore[arg-type]
    assert (problem.where, problem.found) == ("model.zip: config.yml", "6")
