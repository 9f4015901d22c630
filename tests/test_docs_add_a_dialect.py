"""docs/add-a-dialect.md: the package on the page is made, installed beside ours, tested and used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import warmstart
from marian_models import OPTIONS, arrays, write
from warmstart.errors import ConfigError
from warmstart.models.plugins import Families
from warmstart.models.transformer.family import TransformerFamily

PAGE = Path(__file__).parent.parent / "docs" / "add-a-dialect.md"
BLOCK = re.compile(r"^`([\w./]+)`(?:, continued)?\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the page's package as an installer lays it out."""
    folder = tmp_path_factory.mktemp("site")
    files: dict[str, str] = {}
    for name, code in BLOCK.findall(PAGE.read_text("utf-8")):
        files[name] = f"{files[name]}\n\n{code}" if name in files else code
    for name, code in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code, "utf-8")
    said = tomllib.loads(files["pyproject.toml"])
    assert said["tool"]["setuptools"]["packages"] == ["warmstart_bow"]  # else a bundle beside it would be one, too
    project = said["project"]
    info = folder / f"warmstart_bow-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["warmstart.families"].items()
    (info / "entry_points.txt").write_text("[warmstart.families]\n" + "".join(f"{k} = {v}\n" for k, v in points))
    return folder


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    places = [str(folder), str(Path(warmstart.__file__).parent.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, cwd=folder, check=False
    )


def test_the_inherited_tests_pass(installed):
    done = run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= 7


def test_the_page_s_models_are_converted_and_the_plug_in_is_named(installed, tmp_path):
    done = run(tmp_path, installed / "make_model.py")
    assert done.returncode == 0, done.stderr
    verb = ("-m", "warmstart", "convert")
    done = run(installed, *verb, tmp_path / "model.safetensors", tmp_path / "bundle", "--to", "warmstart")
    assert done.returncode == 0, done.stderr
    assert "by the plug-in bow (warmstart-bow 1.0)" in done.stdout
    record = json.loads((tmp_path / "bundle/conversion.json").read_text())
    assert record["plugins"] == ["bow (warmstart-bow 1.0)"]
    done = run(installed, *verb, tmp_path / "bundle", tmp_path / "again", "--to", "bow")
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "words.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()
    done = run(installed, "-m", "warmstart", "inspect", tmp_path / "model.safetensors")
    assert "by the plug-in bow" in done.stdout
    bundle = tmp_path / "bundle"
    for arguments in (("diff", bundle, bundle), ("verify", bundle, bundle), ("inspect", tmp_path / "none.npz")):
        done = run(installed, "-m", "warmstart", *arguments)
        named = [line for line in done.stderr.splitlines() if line.startswith("with the plug-in")]
        expected = ["with the plug-in bow (warmstart-bow 1.0)", "with the plug-in slashes (warmstart-bow 1.0)"]
        assert named == (expected if arguments[0] != "inspect" else []), (arguments, done.stderr)
    folder = write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))
    done = run(installed, *verb, folder, tmp_path / "slashes", "--to", "slashes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plugins"] == ["slashes (warmstart-bow 1.0)"]


def point(value: str) -> EntryPoint:
    return EntryPoint("mine", value, "warmstart.families")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("no_such_package:x", "No module named"),
        ("math:pi", "float"),
        ("warmstart.models.transformer.family:TransformerFamily", "there is a family 'transformer' already"),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_an_error_that_names_it(value, text):
    families = Families([TransformerFamily()], lambda: [point(value)])
    with pytest.raises(ConfigError, match=r"entry point warmstart\.families: mine") as caught:
        list(families)
    assert text in str(caught.value)
