"""A streaming step as a TensorFlow Lite model, through litert-torch. Needs the extras ``train`` and ``tflite``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from warmstart.errors import FormatError, MissingExtra
from warmstart.formats.checkpoint import Array
from warmstart.models.registry import family

FILE = "model.tflite"


def write_tflite(
    directory: Path, header: Mapping[str, str], arrays: Iterable[tuple[str, Array]], *, int8: bool
) -> None:
    """Write ``model.tflite``.

    Args:
        header: ``family``, its ``config`` as JSON, and how many ``frames`` a step has.
        arrays: the family's parameters under canonical names.
        int8: weights are 8-bit integers, activations rounded as they come (dynamic range quantization).

    Raises:
        MissingExtra: torch or litert-torch is not installed.
        FormatError: litert-torch cannot translate the model.
    """
    try:
        import litert_torch
        import torch
        from ai_edge_quantizer import quantizer, recipe
    except ImportError as error:
        raise MissingExtra(error.name or "litert-torch", "tflite") from None
    of = family(header["family"])
    module = of.build(of.config_type.model_validate_json(header["config"]))
    module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays})
    step = module.eval().exported(int(header["frames"]))
    try:
        litert_torch.convert(step, step.example()).export(str(directory / FILE))
    except Exception as error:  # it raises whatever its compiler raises
        raise FormatError(
            "litert-torch cannot translate this model", found=f"{type(error).__name__}: {str(error)[:200]}",
            todo="convert it --to onnx, which onnxruntime runs",
        ) from error  # fmt: skip
    if int8:
        whole = directory / FILE
        rounded = quantizer.Quantizer(str(whole), recipe.dynamic_wi8_afp32())
        content = rounded.quantize().quantized_model
        whole.write_bytes(content)
