"""How each framework spells wav2vec2-BERT: one file for each."""

from __future__ import annotations

from warmstart.models.wav2vec2_bert.dialects.ctranslate2 import CTranslate2Dialect
from warmstart.models.wav2vec2_bert.dialects.transformers import TransformersDialect

__all__ = ["CTranslate2Dialect", "TransformersDialect"]
