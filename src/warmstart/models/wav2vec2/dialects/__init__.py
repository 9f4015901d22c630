"""How each framework spells wav2vec 2.0: one file for each."""

from __future__ import annotations

from warmstart.models.wav2vec2.dialects.ctranslate2 import CTranslate2Dialect
from warmstart.models.wav2vec2.dialects.transformers import TransformersDialect

__all__ = ["CTranslate2Dialect", "TransformersDialect"]
