"""How frameworks spell the decoder-only Transformer."""

from warmstart.models.decoder.dialects.ctranslate2 import CTranslate2Dialect
from warmstart.models.decoder.dialects.eole import EoleDialect
from warmstart.models.decoder.dialects.openai import OpenAIDialect
from warmstart.models.decoder.dialects.opennmt_py import OpenNMTPyDialect
from warmstart.models.decoder.dialects.opennmt_tf import OpenNMTTFDialect
from warmstart.models.decoder.dialects.transformers import TransformersDialect

__all__ = [
    "CTranslate2Dialect",
    "EoleDialect",
    "OpenAIDialect",
    "OpenNMTPyDialect",
    "OpenNMTTFDialect",
    "TransformersDialect",
]
