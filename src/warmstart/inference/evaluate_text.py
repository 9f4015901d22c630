"""A model that translates, scored on texts by the metrics of their tasks."""

from __future__ import annotations

from warmstart.data.config import DataConfig, build_task
from warmstart.errors import DataError
from warmstart.inference.asked import Asked, require_none
from warmstart.inference.translate import translate


def evaluate(data: DataConfig, asked: Asked) -> dict[str, dict[str, float]]:
    """Metrics of every task that has the split.

    Raises:
        ConfigError: options that change nothing for texts.
        DataError: no task has the split.
    """
    require_none("evaluating texts", {"output": asked.output})
    out: dict[str, dict[str, float]] = {}
    for name, piece in data.tasks.items():
        if asked.split not in piece.splits:
            continue
        task = build_task(name, piece, {})
        examples = list(task.examples(asked.split))
        lines = [str(e["source"]) for e in examples]
        found = translate(
            [asked.model],
            lines,
            engine=asked.engine,
            vocabularies=asked.vocabularies,
            device=asked.device,
            **asked.search or {},
        )
        predictions = [task.postprocess(best[0].text, dict(e)) for best, e in zip(found, examples, strict=True)]
        out[name] = task.score([e["target"] for e in examples], predictions)
    if not out:
        raise DataError(f"no task has a split {asked.split!r}", found=", ".join(data.tasks))
    return out
