"""Archives with a model inside, told from the zip files that formats are themselves."""

from __future__ import annotations

from pathlib import Path

from warmstart.formats.mapped import head
from warmstart.formats.zipped import first_member, member_names

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OWN = {"data.pkl", "model.weights.h5", "constants.pkl"}  # of torch and Keras


def recognise(path: Path) -> bool:
    """Whether ``path`` is an archive rather than a checkpoint: a zip of files that are no arrays, tar, gzip, zstd."""
    start = head(path, 512)
    if start.startswith(b"PK\x03\x04"):
        return not first_member(start).endswith(b"/data.pkl") and _zip_of_files(path)
    return start[257:262] == b"ustar" or start.startswith((GZIP, ZSTD))


def _zip_of_files(path: Path) -> bool:
    """A model zipped together with what belongs to it; what torch, numpy and Keras call their own is not."""
    names = [name.rpartition("/")[2] for name in member_names(path) if not name.endswith("/")]
    return bool(names) and _OWN.isdisjoint(names) and not all(name.endswith(".npy") for name in names)
