"""What `inspect` says of a model, as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from warmstart.bundle.model import Model
from warmstart.checked import Config
from warmstart.formats.checkpoint import Array, Checkpoint, Entry
from warmstart.formats.mapped import forget
from warmstart.values.names import matching
from warmstart.values.progress import progress_of
from warmstart.values.statistics import statistics


def describe_model(
    model: Model, *, names: Sequence[str] = (), stats: bool = False, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Format, family, dialect, configuration, vocabularies, step, optimizer, metadata, entries, slots, ties.

    Args:
        names: patterns; only entries of such names, with their slots, are listed.
        stats: read these arrays, one at a time, for statistics of their values.

    Raises:
        ConfigError: a pattern matches nothing.
        CorruptCheckpoint: with ``stats``, an array is damaged.
    """
    checkpoint = model.checkpoint
    chosen = matching(checkpoint.entries, names, checkpoint.path)
    kept = set(chosen)
    entries = [_header(checkpoint.entries[name], name=name) for name in chosen]
    slots = [
        _header(Entry(s.parameter, s.shape, s.dtype), name=s.parameter, slot=s.slot)
        for s in checkpoint.slots.values()
        if not names or s.parameter in kept
    ]
    tied = [{"by": "file", "names": group} for group in _tied_by_file(checkpoint)] + _tied_by_dialect(model)
    if stats:
        tied += _read_statistics(checkpoint, entries, slots)
    return {
        "source": model.source,
        "format": checkpoint.format,
        "family": model.family.name if model.family else None,
        "dialect": model.dialect,
        "not_recognised": {} if model.family else model.why_not(),
        "config": model.config.model_dump(mode="json") if model.config else None,
        "config_defaults": _at_default(model.config) if model.config else [],
        "vocabularies": {
            side: {"kind": v.kind, "size": len(v), "fingerprint": v.fingerprint}
            for side, v in model.vocabularies.items()
        },
        "step": checkpoint.step,
        "optimizer": dict(checkpoint.optimizer),
        "metadata": checkpoint.metadata,
        "num_entries": len(checkpoint.entries),
        "names": list(names),
        "entries": entries,
        "slots": slots,
        "tied": tied,
        "notes": list(notes),
    }


def _at_default(config: Config) -> list[str]:
    """The keys whose values are what they are where nothing is said of them."""
    return [
        name
        for name, field in type(config).model_fields.items()
        if not field.is_required() and getattr(config, name) == field.get_default(call_default_factory=True)
    ]


def _header(entry: Entry, **more: object) -> dict[str, Any]:
    return {"shape": list(entry.shape), "dtype": entry.dtype, "nbytes": entry.nbytes, **more}


def _tied_by_file(checkpoint: Checkpoint) -> list[list[str]]:
    """Groups of names that share their bytes."""
    groups: dict[str, list[str]] = {}
    for name, other in checkpoint.ties.items():
        groups.setdefault(other, [other]).append(name)
    return list(groups.values())


def _tied_by_dialect(model: Model) -> list[dict[str, Any]]:
    """Parameters that are one storage, with the array of the file that holds it."""
    if model.family is None or model.config is None or model.reading is None:
        return []
    storages: dict[str, list[str]] = {}
    for p in model.family.parameters(model.config):
        storages.setdefault(p.storage, []).append(p.name)
    origins = model.reading.origins
    return [
        {"by": "dialect", "names": names, "array": ", ".join(origins[storage].link.foreign)}
        for storage, names in storages.items()
        if len(names) > 1 and storage in origins
    ]


def _read_statistics(
    checkpoint: Checkpoint, entries: Sequence[dict[str, Any]], slots: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Put ``stats`` into ``entries`` and ``slots``; returns groups of entries whose values are the same."""
    alike: dict[object, list[str]] = {}
    total = sum(e["nbytes"] for e in (*entries, *slots))
    with progress_of("statistics", total) as progress:
        for e in entries:
            if checkpoint.entries[e["name"]].readable:
                array = checkpoint.read_checked(e["name"])
                found = statistics(array)
                forget(array)
                e["stats"] = asdict(found)
                if found.min != found.max:  # constants are alike without being tied
                    alike.setdefault((e["dtype"], tuple(e["shape"]), found), []).append(e["name"])
            progress(e["nbytes"])
        for s in slots:
            s["stats"] = asdict(statistics(checkpoint.read_slot(s["name"], s["slot"])))
            progress(s["nbytes"])
    contents: dict[bytes, list[str]] = {}
    for name in [name for names in alike.values() if len(names) > 1 for name in names]:
        contents.setdefault(_digest(checkpoint.read(name)), []).append(name)
    known = [set(group) for group in _tied_by_file(checkpoint)]
    return [
        {"by": "values", "names": names}
        for names in contents.values()
        if len(names) > 1 and not any(set(names) <= group for group in known)
    ]


def _digest(array: Array) -> bytes:
    """Of dtype, shape and the values in C order."""
    digest = hashlib.blake2b(f"{array.dtype.name} {array.shape}".encode(), digest_size=16)
    for part in array if array.ndim > 1 else (array,):  # a transposed view is copied row by row
        digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return digest.digest()
