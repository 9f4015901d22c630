"""`make test-interop`: files that the original frameworks wrote are read, and files of ours are read there.

Every `test_interop_*.py` names what it needs in a literal ``REQUIRES``: a list of requirements, or a dictionary of such
lists where the same tests run against several versions. Each list gets an environment of its own under
`.venv-interop/`, made once. The ordinary tests collect none of this.

    python tests/interop/run.py [NAME ...]      # tensorflow, torch …; all without a name
"""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BASE = ("pytest>=8", "pytest-xdist>=3.6")


def requirements(path: Path) -> Mapping[str, list[str]]:
    """Name of the environment → what it needs, from the literal ``REQUIRES`` of a test file; nothing is run."""
    for node in ast.parse(path.read_text("utf-8")).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(t, ast.Name) and t.id == "REQUIRES" for t in targets) and node.value is not None:
            value = ast.literal_eval(node.value)
            stem = path.stem.removeprefix("test_interop_")
            return value if isinstance(value, dict) else {stem: list(value)}
    raise SystemExit(f"{path} names no REQUIRES")


def environment(name: str, needs: list[str]) -> Path:
    """The interpreter of an environment with warmstart and ``needs``."""
    key = hashlib.sha256("\n".join(needs).encode()).hexdigest()[:8]
    place = ROOT / ".venv-interop" / f"{name}-{key}"
    python = place / "bin" / "python"
    if not (place / ".complete").is_file():
        venv.create(place, with_pip=True, clear=True)
        pinned = any(need.startswith("torch==") for need in needs)
        constraints = [] if pinned else ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([python, "-m", "pip", "install", "-q", *constraints, "-e", str(ROOT), *BASE, *needs], check=True)
        (place / ".complete").touch()
    return python


def main(names: list[str]) -> int:
    files = sorted(HERE.glob("test_interop_*.py"))
    known = [path.stem.removeprefix("test_interop_") for path in files]
    if unknown := set(names) - set(known):
        raise SystemExit(f"no such tests: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    failed = []
    for path, stem in zip(files, known, strict=True):
        if names and stem not in names:
            continue
        for name, needs in requirements(path).items():
            print(f"== {name}: {' '.join(needs)}", flush=True)
            python = environment(name, needs)
            variables = {**os.environ, "WARMSTART_INTEROP": name}
            command = [python, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), str(path)]
            if subprocess.run(command, check=False, env=variables, cwd=ROOT).returncode:
                failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
