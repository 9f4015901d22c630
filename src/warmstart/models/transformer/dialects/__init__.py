"""How each framework spells the encoder-decoder Transformer: one file for each."""

from __future__ import annotations

from warmstart.models.transformer.dialects.ctranslate2 import CTranslate2Dialect
from warmstart.models.transformer.dialects.eole import EoleDialect
from warmstart.models.transformer.dialects.fairseq import FairseqDialect
from warmstart.models.transformer.dialects.marian import MarianDialect
from warmstart.models.transformer.dialects.opennmt_py import OpenNMTPyDialect
from warmstart.models.transformer.dialects.opennmt_tf import OpenNMTTFDialect
from warmstart.models.transformer.dialects.transformers import TransformersDialect

__all__ = [
    "CTranslate2Dialect",
    "EoleDialect",
    "FairseqDialect",
    "MarianDialect",
    "OpenNMTPyDialect",
    "OpenNMTTFDialect",
    "TransformersDialect",
]
