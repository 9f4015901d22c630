"""``.scorer`` packages: a KenLM binary, then a trailer with weights and the lexicon.

After the binary: ``EIRT``, i32 version 6, u8 byte mode, f64 alpha, f64 beta, and an OpenFst ``ConstFst`` of
``standard`` arcs, aligned to 16 bytes, whose labels are the alphabet's plus one (Coqui STT 1.4.0,
``ctcdecode/scorer.cpp``; OpenFst, ``const-fst.h``). All numbers are little-endian.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from warmstart.errors import CorruptCheckpoint, FormatError, VocabularyError
from warmstart.inference.ctc.labels import Labels, space_label
from warmstart.inference.ctc.lexicon import Ints, Lexicon
from warmstart.lean import dataclass
from warmstart.storage.atomic import atomic_file

Bytes = npt.NDArray[np.uint8]
Records = npt.NDArray[Any]

MAGIC = b"EIRT"
VERSION = 6
TRAILER = struct.Struct("<4siBdd")
FST_MAGIC = 2125659606
# Magic, length and text of "const", of "standard", version, flags, properties, start, number of states and of arcs.
FST_HEAD = struct.Struct("<ii5si8siiQqqq")
ALIGNED_VERSION, ALIGNED_FLAG, PLAIN_VERSION = 1, 4, 2
# Of a deterministic, sorted, unweighted, acyclic acceptor, as OpenFst writes them for every dictionary of Coqui's.
PROPERTIES = 0xA5AA5A950001
STATE = np.dtype([("final", "<f4"), ("first", "<u4"), ("count", "<u4"), ("epsilons", "<u4", 2)])
ARC = np.dtype([("input", "<i4"), ("output", "<i4"), ("weight", "<f4"), ("target", "<i4")])
KENLM_MAGIC = b"mmap lm http://kheafield.com/code format version 5\n\0"
KENLM_HAS_WORDS = 88 + 12  # behind order, probing multiplier and model type


@dataclass(frozen=True)
class Package:
    """What stands behind the language model in a ``.scorer``: weights, byte mode, lexicon."""

    alpha: float
    beta: float
    utf8: bool
    lexicon: Lexicon


def is_kenlm_binary(path: Path) -> bool:
    """Whether ``path`` begins as a KenLM binary, as a package does, too."""
    with path.open("rb") as file:
        return file.read(len(KENLM_MAGIC)) == KENLM_MAGIC


def read_package(path: Path) -> Package | None:
    """The trailer of the package at ``path``; None where it is a KenLM binary alone.

    Raises:
        CorruptCheckpoint: there is a trailer, but damaged or cut off.
        FormatError: the trailer is of another version.
    """
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    found = _trailer(data)
    if found is None:
        return None
    if len(data) < found + TRAILER.size:
        raise _corrupt(path, f"{TRAILER.size} bytes of a trailer", f"{len(data) - found}")
    _, version, utf8, alpha, beta = TRAILER.unpack(data[found : found + TRAILER.size].tobytes())
    if version != VERSION:
        raise FormatError(
            "this scorer package is of another version", where=path, expected=f"version {VERSION}", found=version
        )
    if utf8 > 1 or not np.isfinite([alpha, beta]).all():
        raise _corrupt(path, "byte mode 0 or 1 and finite weights", f"{utf8}, {alpha}, {beta}")
    return Package(alpha, beta, bool(utf8), _read_lexicon(data, found + TRAILER.size, path))


def write_package(
    path: Path, language_model: Path, words: Iterable[str], labels: Labels, *, alpha: float, beta: float
) -> list[str]:
    """Writes what Coqui's ``generate_scorer_package`` writes; returns the words that ``labels`` cannot spell.

    Args:
        language_model: a KenLM binary without its word list (``build_binary -v``), which Coqui requires.

    Raises:
        FormatError: ``language_model`` is something else.
        VocabularyError: no word can be spelt.
    """
    with language_model.open("rb") as file:
        head = file.read(KENLM_HAS_WORDS + 1)
    if not head.startswith(KENLM_MAGIC) or len(head) <= KENLM_HAS_WORDS or head[KENLM_HAS_WORDS]:
        raise FormatError(
            "a scorer package needs a KenLM binary without its word list",
            where=language_model,
            found="a binary with words" if head.startswith(KENLM_MAGIC) else "another file",
            todo="make one with KenLM's build_binary -v trie",
        )
    if read_package(language_model) is not None:
        raise FormatError("this is a scorer package already, no bare language model", where=language_model)
    lexicon, left = Lexicon.of(words, labels)
    with atomic_file(path) as temporary, language_model.open("rb") as model, temporary.open("wb") as file:
        shutil.copyfileobj(model, file)
        file.write(TRAILER.pack(MAGIC, VERSION, labels.utf8, alpha, beta))
        _write_lexicon(file, lexicon)
    return left


def check_labels(lexicon: Lexicon, labels: Labels, where: object) -> None:
    """Whether ``lexicon`` can be one of ``labels``: no label beyond them, and words that end in the space.

    Raises:
        VocabularyError: it cannot.
    """
    limit = labels.blank_id
    if len(lexicon.labels) and lexicon.labels.max() >= limit:
        raise VocabularyError(
            "the scorer was made for another alphabet",
            where=where,
            expected=f"labels below {limit}",
            found=f"label {lexicon.labels.max()}",
            todo="build the scorer with this model's alphabet",
        )
    last = set(np.unique(lexicon.labels[lexicon.final[lexicon.targets]]).tolist())
    space = space_label(labels)
    if not labels.utf8 and last != {space}:
        shown = ", ".join(repr(labels.tokens[label]) for label in sorted(last)[:5])
        raise VocabularyError(
            "the scorer was made for another alphabet",
            where=where,
            expected=f"words that end in the space, label {space}" if space is not None else "an alphabet with a space",
            found=f"words that end in {shown}",
            todo="build the scorer with this model's alphabet",
        )


def _trailer(data: Bytes) -> int | None:
    """Where the trailer begins: the last mark with an automaton behind it, or the end of the file where the automaton
    would begin (a model may hold the mark by chance)."""
    step = 1 << 24
    end = len(data)
    while end > 0:
        begin = max(0, end - step)
        chunk = data[begin : end + len(MAGIC) - 1].tobytes()
        at = chunk.rfind(MAGIC)
        while at >= 0:
            head = begin + at + TRAILER.size
            if struct.pack("<i", FST_MAGIC).startswith(data[head : head + 4].tobytes()):
                return begin + at
            at = chunk.rfind(MAGIC, 0, at)
        end = begin
    return None


def _read_lexicon(data: Bytes, at: int, path: Path) -> Lexicon:
    if len(data) < at + FST_HEAD.size:
        raise _corrupt(path, "the header of an automaton", "the end of the file")
    _, five, kind, eight, arcs_of, version, flags, _, start, states, arcs = FST_HEAD.unpack(
        data[at : at + FST_HEAD.size].tobytes()
    )
    if (five, kind, eight, arcs_of) != (5, b"const", 8, b"standard") or version not in (ALIGNED_VERSION, PLAIN_VERSION):
        raise _corrupt(path, "a const automaton of standard arcs", f"{kind!r} of {arcs_of!r}, version {version}")
    aligned = version == ALIGNED_VERSION or bool(flags & ALIGNED_FLAG)
    if flags & ~ALIGNED_FLAG or not (0 <= start < states and arcs >= 0):
        raise _corrupt(path, "an automaton without symbols", f"flags {flags}, start {start} of {states}, {arcs} arcs")
    state_table, at = _table(data, at + FST_HEAD.size, states, STATE, aligned, path)
    arc_table, at = _table(data, at, arcs, ARC, aligned, path)
    if at != len(data):
        raise _corrupt(path, f"the end of the file at {at}", f"at {len(data)}")
    first, count = state_table["first"].astype(np.int64), state_table["count"].astype(np.int64)
    offsets = np.append(first, arcs)
    labels, targets = arc_table["input"].astype(np.int64) - 1, arc_table["target"].astype(np.int64)
    owner = np.repeat(np.arange(states), count) if count.sum() == arcs else None
    if owner is None or (np.diff(offsets) != count).any():
        raise _corrupt(path, "arcs in the order of their states", "gaps or overlaps")
    if arcs and (labels.min() < 0 or targets.min() < 0 or targets.max() >= states):
        raise _corrupt(path, f"labels from 1, targets below {states}", "others")
    if ((np.diff(labels) <= 0) & (np.diff(owner) == 0)).any():
        raise _corrupt(path, "different, sorted labels in each state", "others")
    lexicon = Lexicon(offsets, labels, targets, np.isfinite(state_table["final"]), start)
    if not _acyclic(owner, lexicon):
        raise _corrupt(path, "words that end", "a circle of states")
    if not _leads_to_words(owner, lexicon).all():
        raise _corrupt(path, "states that lead to words, as OpenFst leaves no others", "one that leads to none")
    return lexicon


def _table(
    data: Bytes, at: int, count: int, dtype: np.dtype[np.void], aligned: bool, path: Path
) -> tuple[Records, int]:
    at = -(-at // 16) * 16 if aligned else at
    if count > (len(data) - at) // dtype.itemsize:
        raise _corrupt(path, f"{count} × {dtype.itemsize} bytes at {at}", f"{max(0, len(data) - at)}")
    end = at + count * dtype.itemsize
    return np.frombuffer(data[at:end].tobytes(), dtype), end


def _acyclic(owner: Ints, lexicon: Lexicon) -> bool:
    """Takes away states that only lead to states taken away, until none is left or none can go."""
    open_arcs = np.diff(lexicon.offsets)
    gone = np.zeros(len(open_arcs), bool)
    while True:
        now = ~gone & (open_arcs == 0)
        if not now.any():
            return bool(gone.all())
        gone |= now
        open_arcs = open_arcs - np.bincount(owner[now[lexicon.targets]], minlength=len(open_arcs))


def _leads_to_words(owner: Ints, lexicon: Lexicon) -> npt.NDArray[np.bool_]:
    """States from which a final one can be reached: where all can, a walk through the lexicon meets words soon."""
    leads = lexicon.final.copy()
    while True:
        new = owner[leads[lexicon.targets] & ~leads[owner]]
        if not len(new):
            return leads
        leads[new] = True


def _write_lexicon(file: IO[bytes], lexicon: Lexicon) -> None:
    states, arcs = len(lexicon.offsets) - 1, len(lexicon.labels)
    sizes = (lexicon.start, states, arcs)
    file.write(FST_HEAD.pack(FST_MAGIC, 5, b"const", 8, b"standard", ALIGNED_VERSION, ALIGNED_FLAG, PROPERTIES, *sizes))
    state_table = np.zeros(states, STATE)
    state_table["final"] = np.where(lexicon.final, 0.0, np.inf)
    state_table["first"], state_table["count"] = lexicon.offsets[:-1], np.diff(lexicon.offsets)
    arc_table = np.zeros(arcs, ARC)
    arc_table["input"] = arc_table["output"] = lexicon.labels + 1
    arc_table["target"] = lexicon.targets
    for table in (state_table, arc_table):
        file.write(bytes(-file.tell() % 16))
        file.write(table.tobytes())


def _corrupt(path: Path, expected: str, found: str) -> CorruptCheckpoint:
    return CorruptCheckpoint("the scorer package is damaged", where=path, expected=expected, found=found)
