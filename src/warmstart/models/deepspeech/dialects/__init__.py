"""How frameworks spell DeepSpeech: one file for each."""

from __future__ import annotations

from warmstart.models.deepspeech.dialects.coqui import CoquiDialect
from warmstart.models.deepspeech.dialects.onnx import OnnxDialect
from warmstart.models.deepspeech.dialects.tflite import TfliteDialect
from warmstart.models.family import Dialect

DIALECTS: tuple[Dialect, ...] = (
    CoquiDialect("coqui-cudnn", cudnn=True),
    CoquiDialect(),
    OnnxDialect(),
    TfliteDialect(),
)

__all__ = ["DIALECTS", "CoquiDialect", "OnnxDialect"]
