"""How each framework spells T5: one file for each."""

from __future__ import annotations

from warmstart.models.family import Dialect
from warmstart.models.t5.dialects.ctranslate2 import CTranslate2Dialect
from warmstart.models.t5.dialects.mesh_tensorflow import MeshTensorFlowDialect
from warmstart.models.t5.dialects.t5x import T5XDialect
from warmstart.models.t5.dialects.transformers import TransformersDialect

DIALECTS: tuple[Dialect, ...] = (
    T5XDialect(),
    T5XDialect("t5x-scanned", scanned=True, split=True),
    T5XDialect("t5x-split", split=True, layout=""),
    T5XDialect("t5x-scanned-joined", scanned=True, layout=""),
    MeshTensorFlowDialect(),
    TransformersDialect(),
    CTranslate2Dialect(),
)

__all__ = ["DIALECTS", "CTranslate2Dialect", "MeshTensorFlowDialect", "T5XDialect", "TransformersDialect"]
