"""Growing trees of what was chosen: labels of prefixes, frames of labels."""

from __future__ import annotations

from collections.abc import Iterable

ROOT = 0


class History:
    """Nodes with a value and a parent; node 0 is the root, which stands for nothing chosen yet."""

    def __init__(self) -> None:
        self.parents = [ROOT]
        self.values = [-1]
        self._child: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.parents)

    def children(self, parents: Iterable[int], values: Iterable[int]) -> list[int]:
        """The node of each value behind its parent, the same one every time."""
        known, found = self._child, []
        for pair in zip(parents, values, strict=True):
            node = known.get(pair)
            if node is None:
                node = known[pair] = len(self.parents)
                self.parents.append(pair[0])
                self.values.append(pair[1])
            found.append(node)
        return found

    def path(self, node: int) -> tuple[int, ...]:
        """Values from the root to ``node``."""
        values = []
        while node != ROOT:
            values.append(self.values[node])
            node = self.parents[node]
        return tuple(reversed(values))

    def keep(self, nodes: Iterable[int]) -> dict[int, int]:
        """Forgets what leads to none of ``nodes``; returns old number → new number."""
        kept = {ROOT}
        for leaf in nodes:
            node = leaf
            while node not in kept:
                kept.add(node)
                node = self.parents[node]
        order = sorted(kept)  # parents are older than their children
        number = {node: i for i, node in enumerate(order)}
        self.values = [self.values[node] for node in order]
        self.parents = [number[self.parents[node]] for node in order]
        pairs = zip(self.parents[1:], self.values[1:], strict=True)
        self._child = {pair: node for node, pair in enumerate(pairs, 1)}
        return number
