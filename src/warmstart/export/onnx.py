"""Arrays and a graph that a dialect describes, as an ONNX model. Needs the extra ``onnx``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.errors import FormatError, MissingExtra
from warmstart.formats.checkpoint import Array

FILE = "model.onnx"
_OPSET, _IR = 17, 8  # LayerNormalization; what onnxruntime 1.13 and later open
_LIMIT = 2**31 - 1  # bytes of one protobuf message


def write_onnx(directory: Path, graph: Mapping[str, Any], arrays: Iterable[tuple[str, Array]], *, int8: bool) -> None:
    """Write ``model.onnx``.

    Args:
        graph: name, ``inputs`` and ``outputs`` (float32, name → shape), ``constants``, ``nodes`` in order.
        int8: weights of matrix products and of the LSTM are 8-bit integers, activations rounded as they come
            (onnxruntime's dynamic quantization).

    Raises:
        MissingExtra: onnx, or with ``int8`` onnxruntime, is not installed.
        FormatError: the model is over 2 GiB.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise MissingExtra("onnx", "onnx") from None

    def values(kind: str) -> list[Any]:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in graph[kind].items()]

    held = [(n, np.asarray(v, np.int64 if isinstance(v, list) else np.float32)) for n, v in graph["constants"].items()]
    tensors = [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in (*held, *arrays)]
    size = sum(len(tensor.raw_data) for tensor in tensors)
    if size > _LIMIT:
        raise FormatError("the model is too large for one ONNX file", expected=f"at most {_LIMIT:,} bytes", found=size)
    nodes = [helper.make_node(n["op"], n["inputs"], n["outputs"], **n["attributes"]) for n in graph["nodes"]]
    made = helper.make_graph(nodes, graph["name"], values("inputs"), values("outputs"), tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="warmstart")
    model.ir_version = _IR
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(directory / FILE))
    if int8:
        _quantize(directory)


def _quantize(directory: Path) -> None:
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise MissingExtra("onnxruntime", "onnx") from None
    whole, rounded = directory / FILE, directory / "int8.onnx"
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))  # it recommends a step that fixes shapes, which are to stay free
    try:
        quantize_dynamic(whole, rounded, ["MatMul", "LSTM"], per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logging.disable(before)
    rounded.replace(whole)
