"""Every line of ``docs/from`` that is marked as working is one that the command line or the configuration accepts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from warmstart.cli.verbs import app
from warmstart.config import RunConfig, load_config

PAGES = sorted((Path(__file__).parent.parent / "docs" / "from").glob("*.md"))


def rows() -> list[tuple[str, str]]:
    out = []
    for page in PAGES:
        for line in page.read_text("utf-8").splitlines():
            cells = [c.strip() for c in line.strip("|").split(" | ")]
            status = cells[-1].strip(" |")
            if len(cells) >= 3 and status.startswith("works") and not status.startswith("works without"):
                out.append((page.stem, cells[1]))
    return out


def test_there_is_a_page_for_each_system():
    assert {p.stem for p in PAGES} == {"firefox-translations", "coqui-stt", "t5x", "eir", "ctranslate2"}
    assert rows()


@pytest.mark.parametrize(("page", "ours"), rows())
def test_a_line_marked_as_working_is_accepted(page, ours, tmp_path):
    commands = typer.main.get_command(app).commands
    (code, *_) = re.findall(r"`([^`]+)`", ours)
    if code.startswith("warmstart "):
        _, verb, *arguments = shlex.split(code)
        commands[verb].make_context(verb, arguments)
    elif code.startswith("--"):
        assert any(code.split()[0] in p.opts for c in commands.values() for p in c.params)
    elif "=" in code:
        training = {"steps": 1, "learning_rate": 1.0, "schedule": {"type": "constant"}}
        training |= {"evaluate_every": 1, "checkpoint_every": 1}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"run": "run", "training": training}))
        load_config(tmp_path / "c.yaml", [code])
    elif ":" in code:
        RunConfig.model_validate({"run": "run", **yaml.safe_load(code)})
    else:
        names = {"SRC": "source", "DST": "destination"}
        assert names[code] in {p.name for p in commands["convert"].params}
