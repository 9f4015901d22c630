"""Rules and vocabularies that CTranslate2's dialects of models with one vocabulary have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from warmstart.errors import Problem, VocabularyError
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.model_bin import Floats, Upgraded
from warmstart.models.pretrained import SIDE
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.templates import match
from warmstart.vocabularies.load import load_vocabulary
from warmstart.vocabularies.subwords import SubwordVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary


def gamma_beta(theirs: str, ours: str, each: Mapping[str, int] | None = None) -> list[Rule]:
    """A layer norm of CTranslate2."""
    names = {"gamma": "weight", "beta": "bias"}
    return [rule(f"{theirs}/{a}", f"{ours}.{b}", each=each) for a, b in names.items()]


def linear(theirs: str, ours: str, each: Mapping[str, int] | None = None) -> list[Rule]:
    """A linear layer or a convolution of CTranslate2."""
    return [rule(f"{theirs}/{what}", f"{ours}.{what}", each=each) for what in ("weight", "bias")]


def read_table(checkpoint: Checkpoint, files: Sequence[str], roles: Mapping[str, str]) -> dict[str, Vocabulary]:
    """The one vocabulary beside a ``model.bin``; ``roles`` are special tokens → keys of its config.json.

    Raises:
        VocabularyError: more than one file is given.
    """
    if len(files) > 1:
        raise VocabularyError("this model has one vocabulary", found=len(files))
    if files:
        return {SIDE: load_vocabulary(Path(files[0]))}
    stored = checkpoint.stored if isinstance(checkpoint, Floats) else Upgraded(checkpoint)
    kept = stored.path.with_name("vocabularies") / f"{SIDE}.json"
    if kept.is_file():  # of our own conversions: they know how text becomes tokens
        return {SIDE: load_vocabulary(kept)}
    if "vocabulary" not in stored.metadata.get("vocabularies", {}):
        return {}
    said = stored.metadata.get("config") or {}
    return {SIDE: SubwordVocabulary(stored.vocabulary("vocabulary"), {r: said.get(key) for r, key in roles.items()})}


def layers_of(stored: Upgraded, prefix: str, problems: list[Problem], name: str = "layer") -> int:
    """How many layers are stored under ``prefix``. They must follow each other: the engine stops at the first gap,
    in silence."""
    found = {values[0]["i"] for n in stored.entries if (values := match(f"{prefix}/{name}_{{i}}/**", n))}
    gap = sorted(set(range(max(found, default=-1) + 1)) - found)
    if gap:
        problems.append(Problem(f"{prefix}/{name}_{gap[0]} is missing before later layers"))
    return len(found)
