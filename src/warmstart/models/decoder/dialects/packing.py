"""``quantization_config`` of config.json, where it says that linear layers are packed (AWQ)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmstart.checked import Invalid
from warmstart.errors import validation_problems
from warmstart.models.decoder.config import DecoderConfig, Packing
from warmstart.models.huggingface import Options

_COMPUTATION = ("backend", "do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse")
_UNDERSTOOD = ("quant_method", "version", "format", "bits", "w_bit", "group_size", "q_group_size", "zero_point")


def read_packing(options: Options) -> Packing | None:
    """The packing that ``quantization_config`` says. Problems are left in ``options``."""
    given: Mapping[str, Any] = options.get("quantization_config")
    if not isinstance(given, Mapping) or given.get("quant_method") != "awq":
        method = given.get("quant_method") if isinstance(given, Mapping) else given
        options.problem(f"quantization_config: quant_method {method!r} is not supported", expected="'awq'")
        return None
    if not given.get("zero_point", True):
        options.problem("quantization_config: zero_point: False is not supported")
    if given.get("modules_to_not_convert"):
        options.problem("quantization_config: modules_to_not_convert is not supported", expected="all are packed")
    unknown = sorted(set(given) - {*_UNDERSTOOD, *_COMPUTATION, "modules_to_not_convert"})
    if unknown:
        options.problem(f"quantization_config: {', '.join(unknown)} is not known here")
    layout = str(given.get("version", given.get("format", "gemm"))).lower()
    values = {
        "layout": layout, "bits": given.get("bits", given.get("w_bit", 4)),
        "group_size": given.get("group_size", given.get("q_group_size", 128)),
    }  # fmt: skip
    try:
        return Packing.model_validate(values)
    except Invalid as error:
        options.problems += validation_problems(error, "quantization_config: ")
        return None


def write_packing(c: DecoderConfig) -> dict[str, Any]:
    """``quantization_config`` of ``c``, where it needs one."""
    if c.packing is None:
        return {}
    said = {"bits": c.packing.bits, "group_size": c.packing.group_size, "version": c.packing.layout}
    return {"quantization_config": {"quant_method": "awq", "zero_point": True, **said}}
