"""Vocabulary transfer: which row of the new embedding is which row of the old one."""

from __future__ import annotations

from warmstart.vocabularies.vocabulary import Vocabulary


def rows_by_token(new: Vocabulary, old: Vocabulary) -> tuple[int, ...]:
    """For every row of ``new`` the row of ``old`` with the same token, or -1. The end and unknown tokens are matched
    by their role, whatever they are called."""
    roles = {new.eos_id: old.eos_id}
    if new.unk_id is not None and old.unk_id is not None:
        roles[new.unk_id] = old.unk_id
    special = set(roles.values())
    return tuple(
        roles[row] if row in roles else -1 if old.index.get(token, -1) in special else old.index.get(token, -1)
        for row, token in enumerate(new.tokens)
    )
