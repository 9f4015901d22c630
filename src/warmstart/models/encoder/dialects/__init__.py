"""How each framework spells the encoder-only Transformer: one file for each."""

from __future__ import annotations

from warmstart.models.encoder.dialects.ctranslate2 import CTranslate2Dialect
from warmstart.models.encoder.dialects.transformers import TransformersDialect

__all__ = ["CTranslate2Dialect", "TransformersDialect"]
