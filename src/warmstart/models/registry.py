"""Every family, by name. An explicit list, and plug-ins by entry point: nothing registers itself by being imported."""

from __future__ import annotations

from collections.abc import Iterator

from warmstart.errors import ConfigError
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.family import Dialect, Family
from warmstart.models.lazily import Later, Lazily
from warmstart.models.plugins import Families

# The first that recognises a checkpoint has it: T5 before the Transformer, whose TransformerSpec it also is.
FAMILIES = Families(
    (
        Later("deepspeech", "warmstart.models.deepspeech.family", "DeepSpeechFamily"),
        Later("t5", "warmstart.models.t5.family", "T5Family"),
        Later("transformer", "warmstart.models.transformer.family", "TransformerFamily"),
        Later("decoder", "warmstart.models.decoder.family", "DecoderFamily"),
        Later("encoder", "warmstart.models.encoder.family", "EncoderFamily"),
        Later("whisper", "warmstart.models.whisper.family", "WhisperFamily"),
        Later("wav2vec2", "warmstart.models.wav2vec2.family", "Wav2Vec2Family"),
        Later("wav2vec2_bert", "warmstart.models.wav2vec2_bert.family", "Wav2Vec2BertFamily"),
    )
)


def family(name: str) -> Family:
    """The family called ``name``."""
    found = FAMILIES.named(name)
    if found is None:
        raise ConfigError(f"there is no family {name!r}", expected=", ".join(f.name for f in FAMILIES))
    return found


def find_dialect(of: Family, name: str) -> Dialect | None:
    """A family's dialect called ``name``, if it has one; no other is imported."""
    dialects = of.dialects()
    if isinstance(dialects, Lazily):
        return dialects.named(name)
    return next((d for d in dialects if d.name == name), None)


def dialect(of: Family, name: str) -> Dialect:
    """A family's dialect called ``name``."""
    found = find_dialect(of, name)
    if found is None:
        known = ", ".join(d.name for d in of.dialects())
        raise ConfigError(f"{of.name} has no dialect {name!r}", expected=known)
    return found


def possible(of: Family, checkpoint: Checkpoint) -> Iterator[Dialect]:
    """The family's dialects that may recognise ``checkpoint``, by its format."""
    dialects = of.dialects()
    return dialects.of_format(checkpoint.format) if isinstance(dialects, Lazily) else iter(dialects)
