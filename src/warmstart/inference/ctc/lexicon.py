"""The words that a search may spell, as a deterministic automaton over labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from warmstart.errors import VocabularyError
from warmstart.inference.ctc.labels import Labels, space_label
from warmstart.lean import dataclass

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lexicon:
    """State s has the arcs ``offsets[s] … offsets[s + 1]``, sorted by label, each with its target state.

    Words end in a space, but in byte mode, where they are single characters. A search that arrives in a state that is
    ``final`` begins the next word at ``start``, as Coqui's does (``path_trie.cpp``).
    """

    offsets: Ints
    labels: Ints
    targets: Ints
    final: npt.NDArray[np.bool_]
    start: int = 0

    @classmethod
    def of(cls, words: Iterable[str], labels: Labels) -> tuple[Lexicon, list[str]]:
        """(the smallest lexicon of ``words``, sorted words that are left out because ``labels`` cannot spell them).

        Raises:
            VocabularyError: no word can be spelt, or the alphabet has no space.
        """
        spelt, left = {}, []
        for word in sorted(set(words)):
            ids = spell(word, labels)
            if ids is None:
                left.append(word)
            else:
                spelt[tuple(ids)] = word
        if not spelt:
            raise VocabularyError(
                "no word of the list can be spelt with the alphabet",
                expected="words of its labels" if labels.utf8 or space_label(labels) is not None else "a space label",
                found=", ".join(map(repr, left[:10])) or "no words",
            )
        return _minimal(sorted(spelt)), left

    def arcs(self, states: Ints) -> tuple[Ints, Ints, Ints]:
        """(index into ``states``, label, target) of every arc that leaves one of ``states``; a final target
        is the start."""
        first = self.offsets[states]
        count = self.offsets[states + 1] - first
        source = np.repeat(np.arange(len(states)), count)
        arc = np.arange(len(source)) + np.repeat(first - (np.cumsum(count) - count), count)
        return source, self.labels[arc], self._next[arc]

    def __contains__(self, word: Sequence[int]) -> bool:
        """Whether these labels, with the space behind them, are a word."""
        state = self.start
        for label in word:
            arc = self.offsets[state] + np.searchsorted(self.labels[slice(*self.offsets[state : state + 2])], label)
            if arc == self.offsets[state + 1] or self.labels[arc] != label:
                return False
            state = int(self.targets[arc])
        return bool(self.final[state])

    @cached_property
    def _next(self) -> Ints:
        return np.where(self.final[self.targets], self.start, self.targets)

    def words(self, labels: Labels) -> Iterator[str]:
        """Every word, without its space, in the order of labels."""
        space = space_label(labels)
        stack: list[tuple[int, tuple[int, ...]]] = [(self.start, ())]
        while stack:
            state, spelt = stack.pop()
            if self.final[state] and spelt:
                yield labels.decode([label for label in spelt if label != space])
            for arc in range(self.offsets[state + 1] - 1, self.offsets[state] - 1, -1):
                stack.append((int(self.targets[arc]), (*spelt, int(self.labels[arc]))))


def spell(word: str, labels: Labels) -> list[int] | None:
    """Labels of ``word`` and of the space behind it (none in byte mode); None where it cannot be spelt."""
    if labels.utf8:
        return None if "\0" in word or not word else [byte - 1 for byte in word.encode("utf-8")]
    space = space_label(labels)
    index = {token: row for row, token in enumerate(labels.tokens) if row not in (labels.blank_id, space)}
    if space is None or not word or any(character not in index for character in word):
        return None
    return [*(index[character] for character in word), space]


def _minimal(words: Sequence[tuple[int, ...]]) -> Lexicon:
    """The smallest automaton of sorted ``words`` (Daciuk et al. 2000, incremental construction)."""
    arcs: list[dict[int, int]] = [{}]
    final = [False]
    register: dict[tuple[bool, tuple[tuple[int, int], ...]], int] = {}
    path = [0]  # states of the last word

    def close(length: int) -> None:
        """Replaces what is behind ``length`` labels of the last word by equal states that are there already."""
        while len(path) > length + 1:
            state = path.pop()
            same = register.setdefault((final[state], tuple(arcs[state].items())), state)
            if same != state:
                parent = path[-1]
                arcs[parent][next(reversed(arcs[parent]))] = same

    before: tuple[int, ...] = ()
    for word in words:
        shared = next((i for i, (a, b) in enumerate(zip(word, before, strict=False)) if a != b), len(before))
        close(shared)
        for label in word[shared:]:
            arcs.append({})
            final.append(False)
            arcs[path[-1]][label] = len(arcs) - 1
            path.append(len(arcs) - 1)
        final[path[-1]] = True
        before = word
    close(0)
    return _numbered(arcs, final)


def _numbered(arcs: Sequence[dict[int, int]], final: Sequence[bool]) -> Lexicon:
    """The states that can be reached, numbered from the start."""
    number, order = {0: 0}, [0]
    for state in order:
        for target in arcs[state].values():
            if target not in number:
                number[target] = len(order)
                order.append(target)
    offsets = np.cumsum([0, *(len(arcs[state]) for state in order)])
    labels = np.fromiter((label for state in order for label in arcs[state]), np.int64)
    targets = np.fromiter((number[target] for state in order for target in arcs[state].values()), np.int64)
    return Lexicon(offsets, labels, targets, np.array([final[state] for state in order]))
