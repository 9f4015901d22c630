"""Every kind of task that a configuration may name is in the list, and recognises its files."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from warmstart.kinds import KINDS, Data, kind_of


def test_the_list_is_what_a_configuration_may_name() -> None:
    union, _ = get_args(Data)
    types = [get_args(member)[0].model_fields["type"].default for member in get_args(union)]
    assert sorted(types) == sorted(kind.name for kind in KINDS)


@pytest.mark.parametrize(
    ("files", "kind", "tasks"),
    [
        (["a.csv", "b.sdb"], "speech", ["a.csv", "b.sdb"]),
        (["a.tsv", "b.tsv", "c.tsv"], "text", ["a.tsv", "b.tsv", "c.tsv"]),
        (["a.ar", "a.en"], "text", ["a.en"]),
        (["a.csv", "a.en", "b.en"], None, []),
        (["config.yaml"], None, []),
    ],
)
def test_files_are_recognised_by_one_kind(files: list[str], kind: str | None, tasks: list[str]) -> None:
    found = next((data for k in KINDS if (data := k.of_files([Path(file) for file in files], "test"))), None)
    assert (kind_of(found).name if found else None, list(found.tasks) if found else []) == (kind, tasks)
