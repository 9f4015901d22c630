"""What lies beside an exported DeepSpeech: how features are made for it, and what its outputs stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping

from warmstart.errors import DialectError
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.parameters import VOCABULARY
from warmstart.vocabularies.alphabet import Alphabet
from warmstart.vocabularies.vocabulary import Vocabulary

CONFIG = "config.json"
_SETTINGS = ("n_hidden", "n_input", "n_context", "sample_rate", "win_ms", "step_ms")


def config_file(
    config: DeepSpeechConfig, vocabularies: Mapping[str, Vocabulary], *, frames: int | None = None
) -> dict[str, bytes]:
    """``config.json``: the settings of the features, the alphabet, and how many ``frames`` the model takes at once.

    Raises:
        DialectError: the vocabulary is no alphabet.
    """
    alphabet = vocabularies[VOCABULARY]
    if not isinstance(alphabet, Alphabet):
        raise DialectError("the labels of this model are no alphabet", found=alphabet.kind)
    said = {
        "family": "deepspeech",
        **{key: getattr(config, key) for key in _SETTINGS},
        **({} if frames is None else {"frames": frames}),
        "alphabet": {"utf8": True} if alphabet.utf8 else {"labels": list(alphabet.labels)},
    }
    return {CONFIG: (json.dumps(said, ensure_ascii=False, indent=1) + "\n").encode()}
