"""Parameters that layers of several families have, without torch."""

from __future__ import annotations

from collections.abc import Iterator

from warmstart.models.family import Parameter


def linear(
    name: str, stage: str, shape: tuple[int, int], axes: tuple[str, str], bias: bool = True
) -> Iterator[Parameter]:
    """A weight [out, in] of ``shape``, and a bias [out]."""
    yield Parameter(f"{name}.weight", shape, axes, stage, "glorot")
    if bias:
        yield Parameter(f"{name}.bias", shape[:1], axes[:1], stage, "zeros")


def layer_norm(name: str, stage: str, width: int, axis: str = "d_model", bias: bool = True) -> Iterator[Parameter]:
    """A scale [width], and a bias [width]."""
    yield Parameter(f"{name}.weight", (width,), (axis,), stage, "ones")
    if bias:
        yield Parameter(f"{name}.bias", (width,), (axis,), stage, "zeros")
