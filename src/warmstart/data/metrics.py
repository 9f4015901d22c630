"""Metrics that a configuration can name: ``f(targets, predictions) -> {name: percent}``."""

from __future__ import annotations

from collections.abc import Sequence

from warmstart.data.task import MetricFn
from warmstart.errors import MissingExtra


def chrf(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """chrF2 of the corpus, 0 to 100 (Popović 2015, by sacrebleu)."""
    try:
        from sacrebleu import CHRF
    except ImportError as error:
        raise MissingExtra("sacrebleu", "train") from error
    return {"chrf": float(CHRF().corpus_score(list(predictions), [list(targets)]).score) if targets else 0.0}


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """BLEU of the corpus, 0 to 100 (Papineni et al. 2002, by sacrebleu, tokenised as 13a)."""
    try:
        from sacrebleu import BLEU
    except ImportError as error:
        raise MissingExtra("sacrebleu", "train") from error
    return {"bleu": float(BLEU().corpus_score(list(predictions), [list(targets)]).score) if targets else 0.0}


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Percent of predictions equal to their target."""
    equal = sum(target == prediction for target, prediction in zip(targets, predictions, strict=True))
    return {"exact_match": 100.0 * equal / max(1, len(targets))}


def cer(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Character edits per target character of the corpus, in percent (may exceed 100)."""
    return {"cer": _error_rate(targets, predictions)}


def wer(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Word edits per target word of the corpus, in percent (may exceed 100)."""
    return {"wer": _error_rate([t.split() for t in targets], [p.split() for p in predictions])}


METRICS: dict[str, MetricFn] = {"chrf": chrf, "bleu": bleu, "exact_match": exact_match, "cer": cer, "wer": wer}


def _error_rate(targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> float:
    edits = sum(edit_distance(target, prediction) for target, prediction in zip(targets, predictions, strict=True))
    return 100.0 * edits / max(1, sum(map(len, targets)))


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
