"""CTranslate2's converter of EOLE without EOLE: only its builders of specifications are called."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def eole_ct2(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module ``ctranslate2.converters.eole_ct2``."""
    for name in ("eole", "eole.config", "eole.config.run", "eole.constants", "eole.inputters", "eole.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name in ("eole.inputters.inputter", "eole.models.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["eole.config.run"].PredictConfig = None
    sys.modules["eole.constants"].PositionEncodingType = SimpleNamespace(Relative=1, Rotary=2, Alibi=3)
    sys.modules["eole.inputters.inputter"].vocabs_to_dict = None
    sys.modules["eole.models.model"].get_model_class = None
    from ctranslate2.converters import eole_ct2

    return eole_ct2
