"""Vectors of distances (Shaw et al. 2018) in a ``model.bin``: two tables for each self-attention.

The engine divides by √d_head what the table of keys adds to scores, as it divides the scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from warmstart.errors import DialectError, Problem
from warmstart.models.model_bin import Upgraded
from warmstart.spec.generated import WithMultiple
from warmstart.spec.mapping import Rule, rule

_KEYS, _VALUES = "relative_position_keys", "relative_position_values"


def distance_rules(
    theirs: str, keys: str, values: str, each: Mapping[str, int], *, head_dim: int, scaled: bool
) -> list[Rule]:
    """The tables of the attention ``theirs``, by their canonical names.

    ``scaled`` says whether a model divides what its table of keys adds; one that does not has no table of values of its
    own, and the engine's table of keys is √d_head times that.
    """
    if scaled:
        return [rule(f"{theirs}/{_KEYS}", keys, each=each), rule(f"{theirs}/{_VALUES}", values, each=each)]
    return [rule([f"{theirs}/{_VALUES}", f"{theirs}/{_KEYS}"], keys, _scaling(head_dim), each=each)]


def distances_in(stored: Upgraded) -> list[str]:
    """The tables of keys, of all layers."""
    return sorted(name for name in stored.entries if name.endswith(f"/{_KEYS}"))


def read_distances(stored: Upgraded, keys: Sequence[str]) -> dict[str, Any]:
    """Settings of a family's configuration, by how the tables lie in all layers: one for keys and values, one and its
    multiple for keys, or two.

    Raises:
        DialectError: tables of values are missing; each is named.
    """
    rows, head_dim = stored.entries[keys[0]].shape
    found = {"positions": "relative", "max_relative_positions": (rows - 1) // 2}
    pairs = [(name, f"{name.removesuffix(_KEYS)}{_VALUES}") for name in keys]
    problems = [Problem(f"{values} is missing") for _, values in pairs if values not in stored.entries]
    if problems:
        raise DialectError("keys have vectors of distances and values have none", where=stored.path, problems=problems)
    if all(stored.ties.get(values) == name for name, values in pairs):
        return {**found, "relative_tables": "one"}
    multiple = _scaling(head_dim)
    if all(multiple.holds(stored.read(values), stored.read(name)) for name, values in pairs):
        return {**found, "relative_tables": "one", "relative_scaled": False}
    return {**found, "relative_tables": "two"}


def _scaling(head_dim: int) -> WithMultiple:
    return WithMultiple(float(np.float32(math.sqrt(head_dim))))
