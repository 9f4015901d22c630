"""Weights of a scorer, chosen on recordings: the model runs once, and each pair of weights is a search of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from warmstart.data.speech.audio import read_audio
from warmstart.data.speech.example import SpeechExample
from warmstart.data.speech.split import SHOWN, at_most
from warmstart.errors import DataError, Problem
from warmstart.inference.ctc import BeamOptions, Trial, Tuning, open_scorer, tune
from warmstart.inference.ctc.tune import check_search
from warmstart.inference.speech.acoustic import Floats, open_acoustic
from warmstart.inference.speech.transcriber import Transcriber
from warmstart.storage.progress import Progress


def tune_scorer(
    model: str | Path,
    examples: Sequence[SpeechExample],
    scorer: str | Path,
    *,
    options: BeamOptions,
    alpha_max: float = 5.0,
    beta_max: float = 5.0,
    grid: int = 5,
    progress: bool = False,
    vocabularies: Sequence[str] = (),
) -> Tuning:
    """alpha and beta between 0 and their greatest values for the lowest error rate on ``examples``; see
    :func:`~warmstart.inference.ctc.tune.tune`.

    Raises:
        ConfigError: ranges or counts that cannot be searched; all at once, before anything is opened.
        DataError: recordings cannot be read, or have no transcript.
        WarmstartError: the model or the scorer cannot be opened.
    """
    check_search([example.transcript or "" for example in examples], alpha_max, beta_max, grid)
    acoustic = open_acoustic(model, vocabularies=tuple(vocabularies))
    language = open_scorer(Path(scorer), acoustic.alphabet)
    mfcc = acoustic.mfcc
    with Progress("listening", len(examples), "recordings") if progress else nullcontext() as bar:
        utterances: list[tuple[Floats, str]] = []
        faults: list[Problem] = []
        for example in examples:
            try:
                features = mfcc(read_audio(example.audio, mfcc.sample_rate))
            except DataError as error:
                faults.append(error.problem)
                continue
            pieces = [rows[0] for _, rows in Transcriber(acoustic).pieces([features])]
            empty = np.empty((0, len(acoustic.alphabet)), np.float32)
            utterances.append((np.concatenate(pieces) if pieces else empty, example.transcript or ""))
            if bar is not None:
                bar.update(1)
    if faults:
        raise DataError(f"{len(faults):,} recordings cannot be read", problems=at_most(SHOWN, faults))
    with Progress("weighing", None, "pairs of weights") if progress else nullcontext() as bar:
        return tune(
            utterances,
            acoustic.alphabet,
            language,
            options,
            alpha_max=alpha_max,
            beta_max=beta_max,
            grid=grid,
            progress=None if bar is None else lambda trial: bar.update(1),
        )


def tuning_table(trials: Iterable[Trial], best: Trial) -> str:
    """The trials as a table, the best marked."""
    rows = ["   alpha    beta     WER     CER"]
    rows += [
        f"{'*' if trial == best else ' '} {trial.alpha:6.3f}  {trial.beta:6.3f}  {trial.wer:6.2%}  {trial.cer:6.2%}"
        for trial in trials
    ]
    return "\n".join(rows) + "\n"
