"""One pass over a task's split: every kept example as rows."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from warmstart.data.task import Example, Feature, Task
from warmstart.errors import DataError, Problem
from warmstart.lean import dataclass
from warmstart.vocabularies.vocabulary import Vocabulary

SHOWN = 10
Offsets = NDArray[np.int64]
Rows = NDArray[np.int32]


@dataclass(frozen=True)
class Counts:
    """Examples kept and dropped; ``unknown_source`` are kept ones with a source token that has no row."""

    kept: int
    dropped_empty: int
    dropped_long: int
    unknown_source: int


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """Kept examples, back to back: example i is ``source[source_offsets[i]:source_offsets[i + 1]]`` and the
    same of ``target`` (end row included). ``examples`` are what they were made of, where texts were kept."""

    source: Rows
    source_offsets: Offsets
    target: Rows
    target_offsets: Offsets
    counts: Counts
    vocabularies: tuple[str, str]
    examples: tuple[Mapping[str, Any], ...] = ()

    def __len__(self) -> int:
        return len(self.source_offsets) - 1

    @cached_property
    def source_lengths(self) -> Offsets:
        return np.diff(self.source_offsets)

    @cached_property
    def target_lengths(self) -> Offsets:
        return np.diff(self.target_offsets)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the encoded examples and the fingerprints of the vocabularies."""
        digest = hashlib.sha256("\n".join(self.vocabularies).encode())
        for values in (self.source_offsets, self.source, self.target_offsets, self.target):
            digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


def encode_split(
    task: Task,
    split: str,
    *,
    max_length: int,
    empty_lines: Literal["error", "drop"] = "error",
    unknown_target: Literal["error", "allow"] = "error",
    keep_examples: bool = False,
) -> EncodedSplit:
    """Encodes ``split`` of a task with the features ``source`` and ``target``.

    Examples longer than ``max_length`` tokens (end included) on either side are dropped and counted. Raises
    one ``DataError`` with the first problems: empty lines, target characters without a row, no example left.
    """
    features = (task.features["source"], task.features["target"])
    rows, offsets = (array("i"), array("i")), (array("q", [0]), array("q", [0]))
    problems: list[Problem] = []
    kept: list[Example] = []
    faults = empty = long = unknown = count = 0
    for example in task.examples(split):
        fault = None
        texts = (str(example["source"]), str(example["target"]))
        blank = [name for name, text in zip(("source", "target"), texts, strict=True) if not text.strip()]
        if blank:
            empty += 1
            if empty_lines == "error":
                fault = Problem(f"the {' and '.join(blank)} is empty", _where(example), todo="or set empty_lines: drop")
        else:
            ids = [feature.encode(text) for feature, text in zip(features, texts, strict=True)]
            if max(map(len, ids)) > max_length:
                long += 1
                continue
            if unknown_target == "error" and features[1].vocabulary.unk_id in ids[1]:
                fault = _unknown(features[1].vocabulary, texts[1], example)
        if fault is not None:
            faults += 1
            problems.extend([fault] if faults <= SHOWN else [])
        if fault is not None or blank:
            continue
        count += 1
        unknown += features[0].vocabulary.unk_id in ids[0]
        for side in (0, 1):
            rows[side].extend(ids[side])
            offsets[side].append(len(rows[side]))
        if keep_examples:
            kept.append(example)
    if problems:
        raise DataError(
            f"{split} of task {task.name} cannot be used: {faults} bad lines"
            + (f", the first {SHOWN} are" if faults > SHOWN else ""),
            problems=problems,
        )
    if count == 0:
        raise DataError(
            f"{split} of task {task.name} has no example left",
            found=f"{empty} empty and {long} longer than {max_length} tokens",
        )
    return EncodedSplit(
        np.array(rows[0], np.int32),
        np.array(offsets[0], np.int64),
        np.array(rows[1], np.int32),
        np.array(offsets[1], np.int64),
        Counts(count, empty, long, unknown),
        (_identity(features[0]), _identity(features[1])),
        tuple(kept),
    )


def _identity(feature: Feature) -> str:
    return feature.vocabulary.fingerprint


def _where(example: Example) -> str | None:
    return None if example.get("where") is None else str(example["where"])


def _unknown(vocabulary: Vocabulary, text: str, example: Example) -> Problem:
    units = text.split(" ") if vocabulary.kind == "marian-yaml" else list(text)
    found = sorted({unit for unit in units if vocabulary.unk_id in vocabulary.encode(unit)})
    shown = ", ".join(f"{unit!r} (U+{ord(unit):04X})" if len(unit) == 1 else repr(unit) for unit in found[:SHOWN])
    return Problem(
        "the target holds what its vocabulary has no row for",
        _where(example),
        found=shown or repr(text),
        todo="train the vocabulary on this text, or set unknown_target: allow",
    )
