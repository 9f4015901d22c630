"""A family imports nothing out of another family's folder: what two of them share lies beside them."""

from __future__ import annotations

import ast
from pathlib import Path

import warmstart.models

FOLDER = Path(warmstart.models.__file__).parent
FAMILIES = {path.parent.name for path in FOLDER.glob("*/family.py")}


def test_no_family_reads_in_anothers_folder() -> None:
    assert {"transformer", "decoder", "t5"} <= FAMILIES
    problems = []
    for path in sorted(FOLDER.rglob("*.py")):
        own = path.relative_to(FOLDER).parts[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            other = module.removeprefix("warmstart.models.").partition(".")[0]
            if module.startswith("warmstart.models.") and other in FAMILIES - {own}:
                problems.append(f"{path.name}: {module}")
    assert not problems
