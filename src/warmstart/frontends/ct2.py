"""The command lines of CTranslate2's converters: ``warmstart ct2-marian-converter …`` and its fellows.

One table: a converter is its own flags and how they name a source. What CTranslate2 asks of every converter
(``--output_dir``, ``--vocab_mapping``, ``--quantization``, ``--force``) is said once. A flag that would run foreign
code is accepted and refused with the reason and the safe way.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from warmstart.errors import ConfigError, Problem
from warmstart.export.quantize import QUANTIZATIONS


@dataclass(frozen=True)
class Flag:
    """One flag of a converter, spelt as upstream.

    Attributes:
        kind: ``one`` value, ``many`` values, or a ``switch``.
        refused: why the flag is not followed, and what to do instead.
    """

    name: str
    help: str
    kind: str = "one"
    required: bool = False
    default: Any = None
    choices: tuple[str, ...] | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Request:
    """What ``warmstart.api.convert`` is asked: a source, and its keyword arguments."""

    source: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Converter:
    """One of CTranslate2's commands. ``request`` makes of its parsed flags what ``convert`` is asked."""

    help: str
    flags: tuple[Flag, ...]
    request: Callable[[argparse.Namespace], Request]


COMMON = (
    Flag("output_dir", "output model directory", required=True),
    Flag("vocab_mapping", "vocabulary mapping file (optional)"),
    Flag("quantization", "weight quantization type", choices=QUANTIZATIONS[1:]),
    Flag("force", "replace the output directory if it exists", kind="switch"),
)

CONVERTERS: dict[str, Converter] = {
    "ct2-marian-converter": Converter(
        "convert a model trained with Marian",
        (
            Flag("model_path", "path to the Marian model .npz file", required=True),
            Flag("vocab_paths", "paths to the vocabularies", kind="many", required=True),
        ),
        lambda args: Request(args.model_path, {"from_": "marian", "vocabularies": args.vocab_paths}),
    ),
    "ct2-opus-mt-converter": Converter(
        "convert a model of OPUS-MT",
        (Flag("model_dir", "path to the OPUS-MT model directory", required=True),),
        lambda args: Request(args.model_dir, {"from_": "marian"}),
    ),
}


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of ``command``, a key of :data:`CONVERTERS`."""
    converter = CONVERTERS[command]
    parser = argparse.ArgumentParser(prog=f"warmstart {command}", description=converter.help, allow_abbrev=False)
    for flag in (*converter.flags, *COMMON):
        settings: dict[str, Any] = {"help": flag.help, "required": flag.required, "default": flag.default}
        if flag.kind == "switch":
            settings |= {"action": "store_true", "default": False}
        else:
            settings |= {"nargs": "+" if flag.kind == "many" else None, "choices": flag.choices}
        parser.add_argument(f"--{flag.name}", **settings)
    return parser


def run(command: str, arguments: Sequence[str]) -> dict[str, object]:
    """Do what CTranslate2's ``command`` does; what was written.

    Raises:
        ConfigError: flags that are refused, all at once.
        WarmstartError: as ``warmstart.api.convert``.
        SystemExit: arguments that the command does not have (status 2), or ``--help``.
    """
    from warmstart import api

    args = parser_of(command).parse_args(arguments)
    refused = [
        Problem(f"--{flag.name} is not followed", todo=flag.refused)
        for flag in CONVERTERS[command].flags
        if flag.refused and getattr(args, flag.name)
    ]
    if refused:
        raise ConfigError(f"{command}: flags that would run foreign code", problems=refused)
    request = CONVERTERS[command].request(args)
    return api.convert(
        request.source,
        args.output_dir,
        "ctranslate2",
        quantize=args.quantization,
        vmap=args.vocab_mapping,
        force=args.force,
        **request.options,
    )
