"""Every family, by name. An explicit list, and plug-ins by entry point: nothing registers itself by being imported."""

from __future__ import annotations

from warmstart.errors import ConfigError
from warmstart.models.decoder.family import DecoderFamily
from warmstart.models.deepspeech.family import DeepSpeechFamily
from warmstart.models.encoder.family import EncoderFamily
from warmstart.models.family import Dialect, Family
from warmstart.models.plugins import Families
from warmstart.models.t5.family import T5Family
from warmstart.models.transformer.family import TransformerFamily
from warmstart.models.wav2vec2.family import Wav2Vec2Family
from warmstart.models.wav2vec2_bert.family import Wav2Vec2BertFamily
from warmstart.models.whisper.family import WhisperFamily

# The first that recognises a checkpoint has it: T5 before the Transformer, whose TransformerSpec it also is.
FAMILIES = Families(
    (
        T5Family(),
        TransformerFamily(),
        DecoderFamily(),
        EncoderFamily(),
        WhisperFamily(),
        Wav2Vec2Family(),
        Wav2Vec2BertFamily(),
        DeepSpeechFamily(),
    )
)


def family(name: str) -> Family:
    """The family called ``name``."""
    for candidate in FAMILIES:
        if candidate.name == name:
            return candidate
    raise ConfigError(f"there is no family {name!r}", expected=", ".join(f.name for f in FAMILIES))


def dialect(of: Family, name: str) -> Dialect:
    """A family's dialect called ``name``."""
    for candidate in of.dialects():
        if candidate.name == name:
            return candidate
    known = ", ".join(d.name for d in of.dialects())
    raise ConfigError(f"{of.name} has no dialect {name!r}", expected=known)
