"""Bundles that earlier releases wrote open, verify and say what they said."""

from __future__ import annotations

from pathlib import Path

import pytest

from warmstart import api
from warmstart.bundle.layout import verify
from warmstart.bundle.model import open_model
from warmstart.errors import UnknownFormat

CAPSULES = sorted((Path(__file__).parent / "golden").glob("bundle-*"))


@pytest.mark.parametrize("capsule", CAPSULES, ids=lambda p: p.name)
def test_a_bundle_of_every_release(capsule):
    verify(capsule / "model")
    expected = [line.split(" ||| ") for line in (capsule / "expected.txt").read_text("utf-8").splitlines()]
    found = api.translate([capsule / "model"], ["abc", "dede", "bad"])
    assert [best[0][0] for best in found] == [text for _, text, _ in expected]
    assert [best[0][1] for best in found] == pytest.approx([float(score) for *_, score in expected], abs=1e-4)


@pytest.mark.parametrize("choice", ["auto", "best"])
def test_the_model_of_a_run_is_its_best(choice):
    run = CAPSULES[0]
    assert open_model(f"{run}@{choice}").path == open_model(run).path == run / "model"
    with pytest.raises(UnknownFormat, match="model/"):
        open_model(f"{run}@last")


def test_there_is_one_for_this_release():
    from warmstart import __version__

    assert f"bundle-{__version__}" in {p.name for p in CAPSULES}
