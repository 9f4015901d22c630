"""A checkpoint in another format: every array under its own name, bit for bit, whatever its family."""

from __future__ import annotations

import json

from warmstart.bundle.model import Model
from warmstart.errors import ConfigError
from warmstart.export.plan import Conversion, Job, Ledger, Options, Row
from warmstart.export.quantize import Storage
from warmstart.formats.writers import check_entries, writer_for
from warmstart.spec.mapping import Link, read_through
from warmstart.spec.ops import Identity

FORMATS = {"safetensors": "model.safetensors", "npz": "model.npz", "torch": "model.pt"}
METADATA = "metadata.json"


def plan_as_it_is(model: Model, to: str, options: Options) -> Job:
    """``to`` is one of ``FORMATS``. Beside the arrays lies what the source says of itself (``metadata.json``), which
    travels on from one format to the next; optimizer state stays behind, and the ledger names it.

    Raises:
        ConfigError: a quantization; the arrays stay as they are.
        FormatError: the format cannot hold some names or dtypes; each is named.
    """
    if options.quantization != "none":
        raise ConfigError(
            f"--quantize {options.quantization} does not go with --to {to}, which keeps every array as it is",
            todo="leave it out, or use --to ctranslate2",
        )
    checkpoint = model.stored or model.checkpoint
    check_entries(model.path, writer_for(model.path.with_name(FORMATS[to])), list(checkpoint.entries.values()))
    links = [Link((name,), (name,), Identity()) for name in checkpoint.entries]
    rows = tuple(
        Row(e.name, e.shape, e.dtype, (e.name,), Identity(), 0, Storage(e.dtype))
        for e in sorted(checkpoint.entries.values(), key=lambda entry: entry.name)
    )
    slots = {f"{slot} of {name}": "arrays of the model alone are carried" for name, slot in checkpoint.slots}
    ledger = Ledger({e.name: (e.name,) for e in checkpoint.entries.values()}, slots=slots or None)
    kept = (model.path if model.path.is_dir() else model.path.parent) / METADATA
    files: dict[str, bytes] = {}
    if kept.is_file():
        files[METADATA] = kept.read_bytes()
    elif checkpoint.metadata:
        files[METADATA] = (json.dumps(checkpoint.metadata, ensure_ascii=False, indent=1) + "\n").encode()
    return Job(Conversion(rows, ledger, options, to), read_through(checkpoint, links), files)
