"""A model that translates, scored on texts by the metrics of their tasks."""

from __future__ import annotations

from warmstart.data.config import DataConfig, build_task
from warmstart.errors import DataError
from warmstart.inference.asked import Asked, require_none
from warmstart.inference.search import SearchConfig
from warmstart.inference.translate import translate


def evaluate(data: DataConfig, asked: Asked) -> dict[str, dict[str, float]]:
    """Metrics of every task that has the split.

    Raises:
        ConfigError: options that change nothing for texts.
        DataError: no task has the split.
    """
    search = dict(asked.search or {})
    of_speech = {key: value for key, value in search.items() if key not in SearchConfig.model_fields}
    require_none("evaluating texts", {"output": asked.output, "report_count": asked.report_count, **of_speech})
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
            **search,
        )
        predictions = [task.postprocess(best[0].text, dict(e)) for best, e in zip(found, examples, strict=True)]
        out[name] = task.score([e["target"] for e in examples], predictions)
    if not out:
        raise DataError(f"no task has a split {asked.split!r}", found=", ".join(data.tasks))
    return out
