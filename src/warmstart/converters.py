"""CTranslate2's converter classes, as programs use them: ``OpusMTConverter(dir).convert(out, quantization="int8")``.

They are ``ctranslate2.converters`` with our reader and engine behind them: no torch, and the errors of
``warmstart.errors``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from warmstart import api
from warmstart.frontends.ct2 import COMMON, Request

__all__ = ["Converter", "MarianConverter", "OpusMTConverter"]


class Converter:
    """A source that can be converted; subclasses say which."""

    def __init__(self, request: Request) -> None:
        self._request = request

    @staticmethod
    def declare_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Adds ``--output_dir``, ``--vocab_mapping``, ``--quantization`` and ``--force``."""
        for flag in COMMON:
            if flag.kind == "switch":
                parser.add_argument(f"--{flag.name}", action="store_true", help=flag.help)
            else:
                parser.add_argument(f"--{flag.name}", required=flag.required, choices=flag.choices, help=flag.help)
        return parser

    def convert_from_args(self, args: argparse.Namespace) -> str:
        """:meth:`convert` with what ``declare_arguments`` parsed."""
        return self.convert(args.output_dir, args.vocab_mapping, args.quantization, args.force)

    def convert(
        self,
        output_dir: str | Path,
        vmap: str | Path | None = None,
        quantization: str | None = None,
        force: bool = False,
    ) -> str:
        """Write a CTranslate2 model at ``output_dir``; returns its path.

        Raises:
            WarmstartError: as ``warmstart.api.convert``; an existing output is left as it was.
        """
        options = dict(self._request.options)
        api.convert(
            self._request.source, output_dir, "ctranslate2", quantize=quantization, vmap=vmap, force=force, **options
        )
        return str(output_dir)


class MarianConverter(Converter):
    """Models trained with Marian: ``model_path`` an npz file, ``vocab_paths`` source, then target."""

    def __init__(self, model_path: str | Path, vocab_paths: Sequence[str | Path]) -> None:
        vocabularies = [str(path) for path in vocab_paths]
        super().__init__(Request(str(model_path), {"from_": "marian", "vocabularies": vocabularies}))


class OpusMTConverter(Converter):
    """Models of OPUS-MT: ``model_dir`` holds ``decoder.yml``; a zip as it is downloaded will do."""

    def __init__(self, model_dir: str | Path) -> None:
        super().__init__(Request(str(model_dir), {"from_": "marian"}))
