"""CTranslate2's converter classes, as programs use them: ``OpusMTConverter(dir).convert(out, quantization="int8")``.

They are ``ctranslate2.converters`` with our reader and engine behind them: no torch, and the errors of
``warmstart.errors``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from warmstart.errors import ConfigError, Problem
from warmstart.export.layers import Layer, write_specification
from warmstart.frontends.ct2 import COMMON, CONVERTERS, Request

__all__ = [
    "Converter",
    "EoleConverter",
    "FairseqConverter",
    "Layer",
    "MarianConverter",
    "OpenAIGPT2Converter",
    "OpenNMTPyConverter",
    "OpenNMTTFConverter",
    "OpusMTConverter",
    "TransformersConverter",
    "write_specification",
]


class Converter:
    """A source that can be converted; subclasses say which."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._in_place_of: Mapping[str | None, str | None] = {}  # quantizations that mean another one here

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
        quantize = self._in_place_of.get(quantization, quantization)
        self._request.convert(output_dir, quantize=quantize, vmap=vmap, force=force)
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


def _request(command: str, **flags: object) -> Request:
    """What ``command`` asks with ``flags``.

    Raises:
        ConfigError: a flag that is not followed, with the reason.
    """
    converter = CONVERTERS[command]
    problems = [
        Problem(f"{flag.name} is not followed", todo=flag.refused)
        for flag in converter.flags
        if flag.refused and flags.get(flag.name)
    ]
    if problems:
        raise ConfigError(f"{command}: arguments that are not followed", problems=problems)
    return converter.request(argparse.Namespace(**flags))


class TransformersConverter(Converter):
    """Models of transformers: a directory, or a name on the Hub.

    ``load_as_float16`` makes what is not quantized float16. Weights are never rounded before they are scaled.
    """

    def __init__(
        self,
        model_name_or_path: str | Path,
        activation_scales: str | None = None,
        copy_files: Sequence[str] | None = None,
        load_as_float16: bool = False,
        revision: str | None = None,
        low_cpu_mem_usage: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        flags: dict[str, object] = {
            "activation_scales": activation_scales,
            "copy_files": copy_files,
            "revision": revision,
        }
        flags |= {"trust_remote_code": trust_remote_code, "model": str(model_name_or_path)}
        super().__init__(_request("ct2-transformers-converter", **flags))
        if load_as_float16:
            self._in_place_of = {None: "float16", "int8": "int8_float16"}


class OpenAIGPT2Converter(Converter):
    """GPT-2 as OpenAI published it: ``model_dir`` holds a TensorFlow checkpoint, hparams.json and encoder.json."""

    def __init__(self, model_dir: str | Path) -> None:
        super().__init__(_request("ct2-openai-gpt2-converter", model_dir=str(model_dir)))


class OpenNMTPyConverter(Converter):
    """Models of OpenNMT-py, old ones too; nothing in the file is run."""

    def __init__(self, model_path: str | Path, unsafe_deserialization: bool = False) -> None:
        flags: dict[str, object] = {"model_path": str(model_path), "unsafe_deserialization": unsafe_deserialization}
        super().__init__(_request("ct2-opennmt-py-converter", **flags))


class OpenNMTTFConverter(Converter):
    """Models of OpenNMT-tf, by their configuration: :meth:`from_config`."""

    def __init__(self, model: object) -> None:
        raise ConfigError(
            "a model that OpenNMT-tf holds in memory is not read: the library is not needed here",
            found=type(model).__name__,
            todo="OpenNMTTFConverter.from_config(config), which reads the checkpoint's files",
        )

    @classmethod
    def from_config(
        cls,
        config: str | Path | Mapping[str, Any],
        auto_config: bool = False,
        checkpoint_path: str | Path | None = None,
        model: str | None = None,
    ) -> Self:
        """The model that ``config`` (a YAML file, or what is in it) tells of: its latest checkpoint, or
        ``checkpoint_path``. ``model`` is its name in the catalogue, where no model_description.py lies beside it;
        ``auto_config`` follows the model's own configuration: whether sources end with ``</s>``."""
        converter = cls.__new__(cls)
        path = None if checkpoint_path is None else str(checkpoint_path)
        flags: dict[str, object] = {"config": config, "model_path": path, "model_type": model}
        flags |= {"auto_config": auto_config, "src_vocab": None, "tgt_vocab": None}
        Converter.__init__(converter, _request("ct2-opennmt-tf-converter", **flags))
        return converter


class EoleConverter(Converter):
    """Models of EOLE: ``model_path`` is their directory."""

    def __init__(self, model_path: str | Path) -> None:
        super().__init__(Request(str(model_path), {"from_": "eole"}))


class FairseqConverter(Converter):
    """Models of fairseq; ``data_dir`` holds ``dict.LANGUAGE.txt``."""

    def __init__(
        self,
        model_path: str | Path,
        data_dir: str | Path,
        source_lang: str | None = None,
        target_lang: str | None = None,
        fixed_dictionary: str | None = None,
        no_default_special_tokens: bool = False,
        user_dir: str | None = None,
        unsafe_deserialization: bool = False,
    ) -> None:
        flags: dict[str, object] = {
            "model_path": str(model_path),
            "data_dir": str(data_dir),
            "source_lang": source_lang,
        }
        flags |= {"target_lang": target_lang, "fixed_dictionary": fixed_dictionary, "user_dir": user_dir}
        flags |= {"no_default_special_tokens": no_default_special_tokens}
        flags |= {"unsafe_deserialization": unsafe_deserialization}
        super().__init__(_request("ct2-fairseq-converter", **flags))
