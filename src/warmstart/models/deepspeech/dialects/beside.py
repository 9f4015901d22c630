"""What lies beside an exported DeepSpeech: how features are made for it, and what its outputs stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from warmstart.checked import Invalid
from warmstart.errors import BundleError, DialectError, VocabularyError, validation_problems
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
    alphabet = alphabet_of(vocabularies)
    said = {
        "family": "deepspeech",
        **{key: getattr(config, key) for key in _SETTINGS},
        **({} if frames is None else {"frames": frames}),
        "alphabet": {"utf8": True} if alphabet.utf8 else {"labels": list(alphabet.labels)},
    }
    return {CONFIG: (json.dumps(said, ensure_ascii=False, indent=1) + "\n").encode()}


def alphabet_of(vocabularies: Mapping[str, Vocabulary]) -> Alphabet:
    """The labels of a model.

    Raises:
        DialectError: the vocabulary is no alphabet.
    """
    alphabet = vocabularies[VOCABULARY]
    if not isinstance(alphabet, Alphabet):
        raise DialectError("the labels of this model are no alphabet", found=alphabet.kind)
    return alphabet


def read_config_file(folder: Path) -> tuple[DeepSpeechConfig, Alphabet]:
    """What :func:`config_file` wrote into ``folder``. What a model computes inside is in its graph: of the settings
    that the file does not hold, the configuration has the defaults.

    Raises:
        BundleError: it cannot be read, or says what no model has.
    """
    path = folder / CONFIG
    try:
        said = json.loads(path.read_text("utf-8"))
        alphabet = Alphabet.from_json({"kind": Alphabet.kind, **said["alphabet"]}, path)
        settings = {key: said[key] for key in _SETTINGS}
        return DeepSpeechConfig(vocab_size=len(alphabet), **settings), alphabet
    except (OSError, ValueError, KeyError, TypeError, RecursionError, VocabularyError) as error:
        found = str(error).partition("\n")[0]
        raise BundleError(
            "the exported model's configuration cannot be read",
            where=path,
            found=f"{type(error).__name__}: {found}",
            todo="export the model again",
            problems=validation_problems(error) if isinstance(error, Invalid) else (),
        ) from None
