"""The rooms import downhill only, and torch stays in the rooms that compute."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import warmstart

PACKAGE = Path(warmstart.__file__).parent
# The rooms as CONTRIBUTING.md lists them, indented, between two of its sentences.
_PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")
ORDER = [*_PAGE.partition("those before it")[2].partition("\n\n")[2].partition("\n\n")[0].split(), "__main__"]
HEAVY = {"torch", "transformers"}


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import in ``tree``, also those inside functions.

    ``from a import b`` gives ``a.b``, since ``b`` may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def sources() -> Iterator[tuple[Path, list[tuple[int, str]]]]:
    """(path relative to the package, its imports) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        is_package = relative.name == "__init__.py"
        parts = relative.parent.parts if is_package else relative.with_suffix("").parts
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield relative, list(imported(tree, ".".join(["warmstart", *parts]), is_package))


def room_of(relative: Path) -> str:
    return relative.with_suffix("").parts[0]


def may_use_torch(relative: Path) -> bool:
    in_models = relative.parts[0] == "models" and len(relative.parts) > 2
    computes = relative.name == "module.py" or relative.name.endswith("_torch.py")
    in_module = in_models and (computes or relative.parts[1] == "layers")
    return in_module or room_of(relative) in {"inference", "training"}


def uphill(relative: Path, imports: list[tuple[int, str]]) -> list[str]:
    """Imports, by the module at ``relative``, of rooms below its own or of names outside every room."""
    room = room_of(relative)
    found = []
    for line, name in imports:
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top != "warmstart" or not target or target == "__version__":
            continue
        if target not in ORDER:  # what the package itself offers comes from api, below every room
            found.append(f"{relative}:{line}: {name} is imported past the rooms")
        elif ORDER.index(target) > ORDER.index(room):
            found.append(f"{relative}:{line}: {room} imports {name}")
    return found


def test_every_module_lives_in_a_room_of_the_list() -> None:
    assert {room_of(relative) for relative, _ in sources()} - {"__init__"} == set(ORDER)


def test_rooms_import_downhill_only() -> None:
    problems = [p for relative, names in sources() if room_of(relative) != "__init__" for p in uphill(relative, names)]
    assert not problems, "\n".join(problems)


def test_torch_is_imported_only_where_models_compute() -> None:
    problems = [
        f"{relative}:{line}: {name}"
        for relative, names in sources()
        if not may_use_torch(relative)
        for line, name in names
        if name.split(".")[0] in HEAVY
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("relative", "code", "expected"),
    [
        ("spec/rules.py", "from warmstart.models import x", 1),
        ("spec/rules.py", "from warmstart import models, errors", 1),
        ("spec/rules.py", "from ..models.transformer import config", 1),
        ("spec/rules.py", "def f():\n    import warmstart.cli", 1),
        ("spec/__init__.py", "from ..models import x\nfrom .models import y", 1),
        ("spec/rules.py", "from .models import x\nfrom ..formats import y\nimport warmstart.errors", 0),
        ("spec/rules.py", "from warmstart import train", 1),
        ("spec/rules.py", "import warmstart\nfrom warmstart import __version__", 0),
    ],
)
def test_the_reader_of_imports_sees_every_spelling(relative: str, code: str, expected: int) -> None:
    path = Path(relative)
    is_package = path.name == "__init__.py"
    parts = path.parent.parts if is_package else path.with_suffix("").parts
    names = list(imported(ast.parse(code), ".".join(["warmstart", *parts]), is_package))
    assert len(uphill(path, names)) == expected


@pytest.mark.parametrize("module", ["warmstart", "warmstart.api", "warmstart.cli"])
def test_importing_does_not_pull_in_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "", f"import {module} imports {done.stdout.strip()}"
