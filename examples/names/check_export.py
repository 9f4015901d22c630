"""The exported model against our own decoder on the whole test set: the same lines in float32, and int8's score."""

from __future__ import annotations

import sys

from warmstart import api
from warmstart.config import load_config

HERE = "examples/names"


def main() -> int:
    """Print the comparison; status 1 when float32 differs."""
    from pathlib import Path

    run = f"{HERE}/runs/transfer"
    data = load_config(Path(run) / "config.yaml").data
    assert data is not None
    pairs = [
        line.split("\t")
        for task in data.tasks.values()
        for line in Path(str(task.splits["test"].tsv)).read_text("utf-8").splitlines()
    ]
    lines = [pair[0] for pair in pairs]
    native = [best[0][0] for best in api.translate([run], lines)]
    engine = f"{HERE}/runs/ct2-float32"
    exported = [best[0][0] for best in api.translate([engine], lines)]
    others = [(line, a) for line, a, b in zip(lines, native, exported, strict=True) if a != b]
    alone = sum(api.translate([engine], [line])[0][0][0] == a for line, a in others)
    same = len(lines) - len(others) + alone
    print(f"float32 export: {same} of {len(lines)} test names the same as our decoder")
    if alone:  # its last bits depend on the other lines of a batch, and decide between two letters as likely
        print(f"  {alone} of them where CTranslate2 decodes the name alone, as it does not in a batch")
    for name in ("ct2-float32", "ct2-int8"):
        (scores,) = api.evaluate(f"{HERE}/runs/{name}", f"{run}/config.yaml").values()
        print(f"{name:<12}" + ", ".join(f"{key} {value:.2f}" for key, value in scores.items()))
    return 0 if same == len(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
