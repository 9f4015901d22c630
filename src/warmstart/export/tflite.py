"""Arrays and a graph that a dialect describes, as a TensorFlow Lite model. Needs the extra ``tflite``."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.errors import FormatError, MissingExtra
from warmstart.formats.checkpoint import Array

FILE = "model.tflite"
_VERSION, _IDENTIFIER = 3, b"TFL3"  # of the file
_LIMIT = 2**31 - 1  # bytes of a flatbuffer
_ALIGNED = 16  # bytes; where interpreters expect arrays to begin
_HYBRID = 9  # version of FULLY_CONNECTED that rounds its input to eight bits, too
_OPTIONS = {  # the table of an operator's options
    "ADD": "AddOptions", "CONCATENATION": "ConcatenationOptions", "FULLY_CONNECTED": "FullyConnectedOptions",
    "MEAN": "ReducerOptions", "MINIMUM": "MaximumMinimumOptions", "MUL": "MulOptions", "RESHAPE": "ReshapeOptions",
    "SOFTMAX": "SoftmaxOptions", "SPLIT": "SplitOptions", "SQUARED_DIFFERENCE": "SquaredDifferenceOptions",
    "SUB": "SubOptions",
}  # fmt: skip


def write_tflite(directory: Path, graph: Mapping[str, Any], arrays: Iterable[tuple[str, Array]], *, int8: bool) -> None:
    """Write ``model.tflite``, of operators that TensorFlow 2.4 and later have.

    Args:
        graph: ``inputs``, ``outputs``, ``tensors`` (name → shape), ``types`` (of those that are not FLOAT32),
            ``constants`` (int32 lists, float32, or strings of bytes in hexadecimal) and ``nodes`` in order. An operator
            that TensorFlow Lite has no number for is a custom one.
        arrays: float32, under the names by which nodes take them.
        int8: weights of products are 8-bit integers with one scale, activations rounded as they come (dynamic range
            quantization).

    Raises:
        MissingExtra: ai-edge-litert is not installed.
        FormatError: the model is over 2 GiB.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError:
        raise MissingExtra("ai-edge-litert", "tflite") from None
    model = _Model(schema_py_generated, graph)
    products = {n["inputs"][1] for n in graph["nodes"] if n["op"] == "FULLY_CONNECTED"} if int8 else set()
    for name, value in graph["constants"].items():
        model.constant(name, value)
    for name, array in arrays:
        model.weights(name, np.asarray(array, np.float32), rounded=name in products)
    for node in graph["nodes"]:
        model.node(node, hybrid=int8)
    (directory / FILE).write_bytes(model.content())


class _Model:
    """A flatbuffer in the making, by the object interface of TensorFlow Lite's schema."""

    def __init__(self, schema: Any, graph: Mapping[str, Any]) -> None:
        self._schema, self._types = schema, graph["types"]
        self._codes: dict[tuple[str, int], int] = {}
        self._places: dict[str, int] = {}
        self._buffers = [schema.BufferT()]  # the first is that of tensors without content
        self._subgraph = schema.SubGraphT()
        self._subgraph.tensors, self._subgraph.operators = [], []
        for name, shape in graph["tensors"].items():
            self._tensor(name, shape, graph["types"].get(name, "FLOAT32"))
        self._subgraph.inputs = [self._places[name] for name in graph["inputs"]]
        self._subgraph.outputs = [self._places[name] for name in graph["outputs"]]

    def constant(self, name: str, value: list[int] | float | str) -> None:
        if isinstance(value, str):  # a list of one string: their number, where each begins, where the last ends
            content = bytes.fromhex(value)
            held = struct.pack("<3i", 1, 12, 12 + len(content)) + content
            self._tensor(name, [1], "STRING", np.frombuffer(held, np.uint8))
            return
        kind = "INT32" if isinstance(value, list) else "FLOAT32"
        array = np.asarray(value, kind.lower())
        self._tensor(name, array.shape, kind, array)

    def weights(self, name: str, array: Array, *, rounded: bool) -> None:
        if not rounded:
            self._tensor(name, array.shape, "FLOAT32", array)
            return
        scale = float(np.abs(array).max()) / 127 or 1.0
        tensor = self._tensor(name, array.shape, "INT8", np.rint(array / scale).astype(np.int8))
        tensor.quantization = self._schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [0]

    def node(self, node: Mapping[str, Any], *, hybrid: bool) -> None:
        made, op, options = self._schema.OperatorT(), node["op"], dict(node["options"])
        made.inputs, made.outputs = ([self._places[name] for name in node[side]] for side in ("inputs", "outputs"))
        rounds = hybrid and op == "FULLY_CONNECTED"
        made.opcodeIndex = self._codes.setdefault((op, _HYBRID if rounds else 1), len(self._codes))
        if self._number(op) is None:
            from flatbuffers import flexbuffers

            made.customOptions = np.frombuffer(flexbuffers.Dumps(options), np.uint8)
        elif op in _OPTIONS:
            table = getattr(self._schema, f"{_OPTIONS[op]}T")()
            if rounds:
                options["asymmetricQuantizeInputs"] = True
            if "fusedActivationFunction" in options:
                kinds = self._schema.ActivationFunctionType
                options["fusedActivationFunction"] = getattr(kinds, options["fusedActivationFunction"])
            vars(table).update(options)
            made.builtinOptionsType, made.builtinOptions = getattr(self._schema.BuiltinOptions, _OPTIONS[op]), table
        self._subgraph.operators.append(made)

    def content(self) -> bytearray:
        size = sum(buffer.data.nbytes for buffer in self._buffers if buffer.data is not None)
        if size > _LIMIT:
            raise FormatError(
                "the model is too large for one TensorFlow Lite file",
                expected=f"at most {_LIMIT:,} bytes",
                found=f"{size:,}",
                todo="--quantize int8 takes a quarter",
            )
        import flatbuffers

        model = self._schema.ModelT()
        model.version, model.description, model.buffers = _VERSION, "warmstart", self._buffers
        model.subgraphs, model.operatorCodes = [self._subgraph], [self._code(*code) for code in self._codes]
        builder = flatbuffers.Builder(size + size // 64 + 2**20)
        builder.Finish(model.Pack(builder), _IDENTIFIER)
        content: bytearray = builder.Output()
        return content

    def _tensor(self, name: str, shape: Iterable[int], kind: str, content: Array | None = None) -> Any:
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), getattr(self._schema.TensorType, kind)
        if content is not None:
            tensor.buffer = len(self._buffers)
            self._buffers.append(_aligned(self._schema, content))
        self._places[name] = len(self._subgraph.tensors)
        self._subgraph.tensors.append(tensor)
        return tensor

    def _code(self, op: str, version: int) -> Any:
        code, number = self._schema.OperatorCodeT(), self._number(op)
        if number is None:
            code.customCode, number = op, self._schema.BuiltinOperator.CUSTOM
        code.builtinCode = code.deprecatedBuiltinCode = number  # all are below 127, the largest of the older field
        code.version = version
        return code

    def _number(self, op: str) -> int | None:
        number: int | None = getattr(self._schema.BuiltinOperator, op, None)
        return number


def _aligned(schema: Any, content: Array) -> Any:
    """A buffer whose bytes begin where interpreters want them; the schema's own begin anywhere."""

    class Aligned(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:  # noqa: N802
            builder.Prep(_ALIGNED, self.data.nbytes)
            return super().Pack(builder)

    buffer = Aligned()
    buffer.data = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
    return buffer
