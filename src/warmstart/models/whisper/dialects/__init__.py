"""How each framework spells Whisper: one file for each."""

from __future__ import annotations

from warmstart.models.whisper.dialects.ctranslate2 import CTranslate2Dialect
from warmstart.models.whisper.dialects.transformers import TransformersDialect

__all__ = ["CTranslate2Dialect", "TransformersDialect"]
