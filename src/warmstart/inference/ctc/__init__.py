"""From the outputs of a model trained with CTC to text: greedy, prefix beam search, language models, reports.

Everything takes natural logarithms of probabilities, (T, A) with the blank last, and the labels that they stand for.
Nothing here needs torch.
"""

from warmstart.inference.ctc.beam import DecoderStream, decode_beam
from warmstart.inference.ctc.flashlight import FlashlightDecoder
from warmstart.inference.ctc.greedy import greedy
from warmstart.inference.ctc.labels import Labels
from warmstart.inference.ctc.lexicon import Lexicon
from warmstart.inference.ctc.options import BeamOptions
from warmstart.inference.ctc.report import Report, Sample, error_report, write_samples
from warmstart.inference.ctc.scorer import Scorer, open_scorer
from warmstart.inference.ctc.scorer_file import write_package
from warmstart.inference.ctc.search import Decoder, SpeechSearch
from warmstart.inference.ctc.transcript import Timed, Transcript, characters, words
from warmstart.inference.ctc.tune import Trial, Tuning, tune

__all__ = [
    "BeamOptions",
    "Decoder",
    "DecoderStream",
    "FlashlightDecoder",
    "Labels",
    "Lexicon",
    "Report",
    "Sample",
    "Scorer",
    "SpeechSearch",
    "Timed",
    "Transcript",
    "Trial",
    "Tuning",
    "characters",
    "decode_beam",
    "error_report",
    "greedy",
    "open_scorer",
    "tune",
    "words",
    "write_package",
    "write_samples",
]
