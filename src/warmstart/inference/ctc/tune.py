"""Weights of a language model, chosen on outputs that were computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from warmstart.data.metrics import edit_distance
from warmstart.errors import ConfigError, DataError, Problem
from warmstart.inference.ctc.beam import decode_beam
from warmstart.inference.ctc.labels import Labels
from warmstart.inference.ctc.options import BeamOptions
from warmstart.inference.ctc.scorer import Scorer
from warmstart.lean import dataclass


@dataclass(frozen=True)
class Trial:
    """Error rates (edits per word and per character of all references) with these weights."""

    alpha: float
    beta: float
    wer: float
    cer: float


@dataclass(frozen=True)
class Tuning:
    """``trials`` in the order in which they were made; ``best`` has the lowest WER (``by="cer"``: CER), then the other
    rate, then the smallest weights."""

    trials: tuple[Trial, ...]
    best: Trial


def tune(
    utterances: Sequence[tuple[npt.ArrayLike, str]],
    labels: Labels,
    scorer: Scorer,
    options: BeamOptions | None = None,
    *,
    alpha_max: float = 5.0,
    beta_max: float = 5.0,
    grid: int = 5,
    rounds: int = 3,
    by: str | None = None,
    progress: Callable[[Trial], None] | None = None,
) -> Tuning:
    """Searches alpha in [0, ``alpha_max``] and beta in [0, ``beta_max``]: a grid, then finer ones around the best.

    The model is not run again; each trial is a search over ``utterances``. Nothing is random. The first round has
    ``grid``² trials; each further one halves the distance and tries the up to 8 neighbours of the best.

    Args:
        utterances: ((T, A) natural logarithms, reference with at least one word) of each.
        by: ``wer`` or ``cer``; None: CER for a scorer of bytes, as Coqui's ``lm_optimizer.py``, else WER.

    Raises:
        DataError: no utterances, or references without words.
        ConfigError: ranges or counts that cannot be searched; all at once.
    """
    by = by or ("cer" if scorer.utf8 else "wer")
    arrays = [np.asarray(array) for array, _ in utterances]
    references = [reference for _, reference in utterances]
    check_search(references, alpha_max, beta_max, grid, rounds, by)
    trials: dict[tuple[float, float], Trial] = {}

    def attempt(points: Iterable[tuple[float, float]]) -> Trial:
        for alpha, beta in points:
            if (alpha, beta) not in trials:
                weighted = scorer.weighted(alpha, beta)
                found = [decode_beam(array, labels, options, weighted)[0].text for array in arrays]
                trials[alpha, beta] = Trial(alpha, beta, *_rates(references, found))
                if progress is not None:
                    progress(trials[alpha, beta])
        return min(trials.values(), key=lambda t: (getattr(t, by), t.wer, t.cer, t.alpha, t.beta))

    alphas, betas = np.linspace(0, alpha_max, grid), np.linspace(0, beta_max, grid)
    best = attempt((float(alpha), float(beta)) for alpha in alphas for beta in betas)
    steps = alpha_max / max(1, grid - 1), beta_max / max(1, grid - 1)
    for _ in range(rounds - 1):
        steps = steps[0] / 2, steps[1] / 2
        near = [
            (best.alpha + i * steps[0], best.beta + j * steps[1])
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
            if (i, j) != (0, 0)
        ]
        best = attempt((alpha, beta) for alpha, beta in near if 0 <= alpha <= alpha_max and 0 <= beta <= beta_max)
    return Tuning(tuple(trials.values()), best)


@lru_cache(1 << 16)
def _edits(reference: str, found: str) -> tuple[int, int]:
    return edit_distance(reference.split(), found.split()), edit_distance(reference, found)


def _rates(references: Sequence[str], found: Sequence[str]) -> tuple[float, float]:
    edits = [_edits(reference, text) for reference, text in zip(references, found, strict=True)]
    words, characters = (sum(column) for column in zip(*edits, strict=True))
    return words / sum(len(r.split()) for r in references), characters / sum(map(len, references))


def check_search(
    references: Sequence[str], alpha_max: float, beta_max: float, grid: int, rounds: int = 3, by: str = "wer"
) -> None:
    """Raises as :func:`tune` does."""
    empty = sum(not reference.split() for reference in references)
    if empty or not references:
        raise DataError(
            "weights are chosen on references with words",
            found=f"{empty} of {len(references)} without words" if empty else "no utterances",
        )
    checks = [
        (np.isfinite(alpha_max) and alpha_max > 0, "alpha_max", "above 0", alpha_max),
        (np.isfinite(beta_max) and beta_max > 0, "beta_max", "above 0", beta_max),
        (grid >= 2, "grid", "2 or more", grid),
        (rounds >= 1, "rounds", "1 or more", rounds),
        (by in ("wer", "cer"), "by", "wer or cer", by),
    ]
    problems = [
        Problem(f"{name} cannot be searched with", expected=expected, found=str(value))
        for good, name, expected, value in checks
        if not good
    ]
    if problems:
        raise ConfigError("the search for weights cannot be set up", problems=problems)
