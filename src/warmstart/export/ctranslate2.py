"""``model.bin`` version 6 with its ``config.json`` and vocabularies (CTranslate2's TransformerSpec, revision 7).

Layout, little-endian: u32 version · str spec · u32 revision · u32 count · count × (str name · u8 rank · u32 dims ·
u8 type · u32 bytes · payload) · u32 aliases · aliases × (str alias · str target); a str is u16 length with its NUL,
UTF-8, NUL. Variables and aliases are sorted by name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from warmstart.errors import ConfigError, FormatError
from warmstart.export.quantize import int8_rows
from warmstart.formats.checkpoint import Array
from warmstart.models.transformer.config import TransformerConfig
from warmstart.vocabularies.vocabulary import Vocabulary

QUANTIZATIONS = ("float32", "int8")
_TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
_LIMIT = 2**32 - 1


def write_model(
    directory: Path,
    config: TransformerConfig,
    variables: Mapping[str, Callable[[], Array]],
    aliases: Mapping[str, str],
    vocabularies: Mapping[str, Vocabulary],
    quantization: str = "float32",
) -> None:
    """Write the files of a CTranslate2 model into the (new) ``directory``.

    Raises:
        FormatError: an array cannot be expressed (4 GiB or more, not finite under int8).
        ConfigError: unknown quantization.
    """
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization {quantization!r} is not supported", expected=" or ".join(QUANTIZATIONS))
    quantized = {n for n in variables if n.endswith("/weight")} if quantization == "int8" else set()
    scales = {f"{n}_scale" for n in quantized}
    with (directory / "model.bin").open("wb") as stream:
        stream.write(struct.pack("<I", 6) + _string("TransformerSpec") + struct.pack("<I", 7))
        stream.write(struct.pack("<I", len(variables) + len(scales)))
        for name in sorted(variables):
            array = variables[name]()
            if name in quantized:
                array, scale = int8_rows(array, name)
                _variable(stream, name, array)
                _variable(stream, f"{name}_scale", scale)
            else:
                _variable(stream, name, array)
        stream.write(struct.pack("<I", len(aliases)))
        for alias in sorted(aliases):
            stream.write(_string(alias) + _string(aliases[alias]))
    _write_json(directory / "config.json", _config(config, vocabularies))
    tables = {side: list(v.tokens) for side, v in vocabularies.items()}
    if tables["source"] == tables["target"]:
        _write_json(directory / "shared_vocabulary.json", tables["source"])
    else:
        for side, tokens in tables.items():
            _write_json(directory / f"{side}_vocabulary.json", tokens)


def _config(config: TransformerConfig, vocabularies: Mapping[str, Vocabulary]) -> dict[str, object]:
    target = vocabularies["target"]
    eos = target.tokens[target.eos_id]
    return {
        "add_source_bos": False,
        "add_source_eos": True,
        "bos_token": "<s>",
        "decoder_start_token": eos,
        "eos_token": eos,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "multi_query_attention": False,
        "unk_token": "<unk>" if target.unk_id is None else target.tokens[target.unk_id],
    }


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<H", len(data) + 1) + data + b"\0"


def _variable(stream: IO[bytes], name: str, array: Array) -> None:
    array = np.ascontiguousarray(array) if array.ndim else array
    if array.nbytes > _LIMIT:
        raise FormatError("model.bin cannot hold an array of 4 GiB or more", where=name, found=f"{array.nbytes} bytes")
    stream.write(_string(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape))
    stream.write(struct.pack("<BI", _TYPES[array.dtype.name], array.nbytes))
    stream.write(array.tobytes())


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")
