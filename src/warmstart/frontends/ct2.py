"""The command lines of CTranslate2's converters: ``warmstart ct2-marian-converter …`` and its fellows.

One table: a converter is its own flags and how they name a source. What CTranslate2 asks of every converter
(``--output_dir``, ``--vocab_mapping``, ``--quantization``, ``--force``) is said once. A flag that would run foreign
code is accepted and refused with the reason and the safe way.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from warmstart.errors import ConfigError, Problem, WarmstartError
from warmstart.export.quantizations import QUANTIZATIONS
from warmstart.frontends.ct2_errors import in_words_of
from warmstart.lean import dataclass
from warmstart.sources.uri import at_home, split_choice


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
    """What ``warmstart.api.convert`` is asked: a source, and its keyword arguments.

    Attributes:
        read: files that said so, which an output must not replace.
    """

    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    read: tuple[Path, ...] = ()

    def convert(self, output_dir: str | Path, **more: Any) -> dict[str, object]:
        """
        Raises:
            WarmstartError: as ``warmstart.api.convert``.
        """
        from warmstart import api

        if self.read:
            from warmstart.export.convert import refuse_replacing

            refuse_replacing(at_home(output_dir), self.read)
        return api.convert(self.source, output_dir, "ctranslate2", **{**self.options, **more})


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

# In the order in which transformers looks for them (`modeling_utils.py`).
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_NO_PICKLES = (
    "leave it out: files of torch are read here without running what is in them, old ones (argparse.Namespace, "
    "torchtext) too"
)


def _of_transformers(args: argparse.Namespace) -> Request:
    """
    Raises:
        ConfigError: a name that nobody has, or a revision of what has none.
    """
    source, (place, choice) = args.model, split_choice(args.model)
    if Path(place).expanduser().is_dir():
        source = source if choice else _weights_of(source)
    elif not Path(source).expanduser().exists():
        if ":" in source and args.revision:
            raise ConfigError(
                "--revision is of a name on the Hub", where=source, todo="write it into the URL: hf:owner/name@revision"
            )
        if ":" not in source:
            if source.count("/") != 1:
                raise ConfigError(
                    "there is no such directory, and no such name on the Hub",
                    where=source,
                    expected="a directory, or owner/name",
                    todo="old names without an owner have one now: gpt2 is openai-community/gpt2",
                )
            source = f"hf:{source}" + (f"@{args.revision}" if args.revision else "")
    options = {"copy_files": args.copy_files or (), "activation_scales": args.activation_scales}
    return Request(source, {"from_": "transformers", **options})


def _weights_of(folder: str) -> str:
    """``folder``; where several checkpoints lie in it, the one that transformers takes."""
    from warmstart.formats.detect import find_candidates

    place = Path(folder).expanduser()
    names = [name for name in _WEIGHTS if (place / name).is_file()]
    return f"{folder}@{names[0]}" if names and len(find_candidates(place)) > 1 else folder


def _of_fairseq(args: argparse.Namespace) -> Request:
    dialect = "fairseq-plain" if args.no_default_special_tokens else "fairseq"
    if args.source_lang or args.target_lang:  # else the model says them
        dialect += f":{args.source_lang or ''},{args.target_lang or ''}"
    return Request(args.model_path, {"from_": dialect, "vocabularies": [args.fixed_dictionary or args.data_dir]})


def _of_opennmt_tf(args: argparse.Namespace) -> Request:
    """
    Raises:
        ConfigError: the configuration cannot be read, or says what the converter would need OpenNMT-tf for.
    """
    config = _configuration(args.config)
    data = config.get("data") or {}
    folder = Path(str(config.get("model_dir", "")))
    files = []
    parallel = [(None, key) for k in range(len(data)) if (key := f"source_{k + 1}_vocabulary") in data]
    sources = parallel or [(args.src_vocab, "source_vocabulary")]
    named = [*sources, (args.tgt_vocab, "target_vocabulary")]
    if not any(given or data.get(key) for given, key in named):
        named = [(None, "vocabulary")]  # of a language model
    for given, key in named:
        name = given or data.get(key)
        if name is not None:
            files.append(str(folder / name if not given and (folder / name).exists() else name))
    source = args.model_path or (f"{folder}@last" if config else None)
    if source is None:
        raise ConfigError("nothing says which checkpoint is meant", todo="give --config or --model_path")
    if (args.model_type or "").endswith(".py"):
        raise ConfigError(
            "--model_type names a program, which is not run",
            todo="put it beside the checkpoint as model_description.py: it is read as text there",
        )
    words = [args.model_type or "", *_controls(data, bool(parallel), args.config), "auto" if args.auto_config else ""]
    said = ",".join(word for word in words if word)
    dialect = f"opennmt-tf:{said}" if said else "opennmt-tf"
    if len(files) == 1:
        _require_language_model(str(source), dialect, files[0])
    read = (Path(args.config),) if isinstance(args.config, str | Path) else ()
    return Request(str(source), {"from_": dialect, "vocabularies": files}, read)


def _require_language_model(source: str, dialect: str, file: str) -> None:
    """That a single vocabulary is a language model's: a translation model has two, though they may be one file.

    Raises ``ConfigError``; what is wrong with the model itself, as ``open_model``.
    """
    from warmstart.bundle.model import open_model

    family = open_model(source, dialect=dialect).family
    if family is not None and family.name == "transformer":
        raise ConfigError(
            "a translation model has a source and a target vocabulary",
            where=source,
            found=f"{file} alone",
            todo="give --src_vocab SOURCE_FILE --tgt_vocab TARGET_FILE, one file twice where both sides share it",
        )


def _configuration(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """OpenNMT-tf's configuration, from a file or as it is, of which what is needed has its type.

    Raises:
        ConfigError: it cannot be read, or has not.
    """
    import yaml

    where = None if isinstance(given, Mapping) else given
    try:
        config: Any = yaml.safe_load(Path(where).read_text("utf-8")) if where else given
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError("the configuration cannot be read", where=where, found=error) from None
    config = {} if config is None else config
    data = (config.get("data") or {}) if isinstance(config, Mapping) else {}
    keys = {"the configuration": config, "data": data}
    texts = (
        {f"data.{k}": v for k, v in data.items() if str(k).endswith("vocabulary")} if isinstance(data, Mapping) else {}
    )
    wrong = [Problem(f"{k} holds no keys", found=str(v)[:80]) for k, v in keys.items() if not isinstance(v, Mapping)]
    wrong += [
        Problem(f"{key} is no text", found=str(value)[:80])
        for key, value in {**texts, "model_dir": None if wrong else config.get("model_dir")}.items()
        if not isinstance(value, str | Path | None)
    ]
    if wrong:
        raise ConfigError("this is no configuration of OpenNMT-tf", where=where, problems=wrong)
    return dict(config)


def _controls(data: Mapping[str, Any], parallel: bool, where: object) -> list[str]:
    """Which special tokens frame a source: ``start``, ``end``. The first input's own words go before those for all
    (OpenNMT-tf, ``inputters/text_inputter.py``).

    Raises:
        ConfigError: something else is said.
    """
    keys = (*(("source_1_sequence_controls",) if parallel else ()), "source_sequence_controls", "sequence_controls")
    key = next((key for key in keys if data.get(key) is not None), keys[-1])
    said = data.get(key) or {}
    if (
        not isinstance(said, Mapping)
        or not {*said} <= {"start", "end"}
        or not all(type(v) is bool for v in said.values())
    ):
        raise ConfigError(
            f"data.{key} is not understood", where=where, expected="start and end, true or false", found=str(said)
        )
    return [word for word in ("start", "end") if said.get(word)]


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
    "ct2-openai-gpt2-converter": Converter(
        "convert GPT-2 as OpenAI published it",
        (Flag("model_dir", "path to the model directory", required=True),),
        lambda args: Request(args.model_dir, {"from_": "openai-gpt2"}),
    ),
    "ct2-transformers-converter": Converter(
        "convert a model of transformers",
        (
            Flag("model", "name of the model on the Hugging Face Hub, or a directory", required=True),
            Flag("activation_scales", "path to activation scales (SmoothQuant), of OPT"),
            Flag("copy_files", "names of files of the model to copy", kind="many"),
            Flag("revision", "revision of the model on the Hub"),
            Flag("low_cpu_mem_usage", "nothing: memory is always bounded by the largest array", kind="switch"),
            Flag(
                "trust_remote_code",
                "refused",
                kind="switch",
                refused="leave it out: no code of a model is run here; its arrays and its configuration are read",
            ),
            Flag("dry-run", "refused", kind="switch", refused="`warmstart inspect` shows a model; this is of Drama 3"),
            Flag("report", "refused", refused="every conversion writes conversion.json; this is of Drama 3"),
        ),
        _of_transformers,
    ),
    "ct2-opennmt-py-converter": Converter(
        "convert a model of OpenNMT-py",
        (
            Flag("model_path", "path to the model", required=True),
            Flag("unsafe_deserialization", "refused", kind="switch", refused=_NO_PICKLES),
        ),
        lambda args: Request(args.model_path, {"from_": "opennmt-py"}),
    ),
    "ct2-opennmt-tf-converter": Converter(
        "convert a model of OpenNMT-tf",
        (
            Flag("config", "path to the YAML configuration"),
            Flag("auto_config", "follow the model's own configuration: whether sources end with </s>", kind="switch"),
            Flag("model_path", "path to the checkpoint, or to a directory of them; else the latest of the model's"),
            Flag("model_type", "name of the model in the catalogue, where no model_description.py lies beside it"),
            Flag("src_vocab", "path to the source vocabulary, or to the one of a language model"),
            Flag("tgt_vocab", "path to the target vocabulary"),
        ),
        _of_opennmt_tf,
    ),
    "ct2-fairseq-converter": Converter(
        "convert a model of fairseq",
        (
            Flag("model_path", "path to the model", required=True),
            Flag("data_dir", "directory of the source and target dictionaries", required=True),
            Flag(
                "user_dir",
                "refused",
                refused="leave it out: no code is run here; architectures of one's own that only name sizes are read",
            ),
            Flag("fixed_dictionary", "the dictionary of a multilingual model"),
            Flag("source_lang", "source language: names a dictionary of the directory"),
            Flag("target_lang", "target language: names a dictionary of the directory"),
            Flag(
                "no_default_special_tokens",
                "the user gives every special token, also what the decoder starts from",
                kind="switch",
            ),
            Flag("unsafe_deserialization", "refused", kind="switch", refused=_NO_PICKLES),
        ),
        _of_fairseq,
    ),
}


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of ``command``, a key of :data:`CONVERTERS`."""
    converter = CONVERTERS[command]
    parser = argparse.ArgumentParser(prog=f"warmstart {command}", description=converter.help)
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
    args = parser_of(command).parse_args(arguments)
    refused = [
        Problem(f"--{flag.name} is not followed", todo=flag.refused)
        for flag in CONVERTERS[command].flags
        if flag.refused and getattr(args, flag.name.replace("-", "_"))
    ]
    if refused:
        raise ConfigError(f"{command}: flags that are not followed", problems=refused)
    request = CONVERTERS[command].request(args)
    try:
        return request.convert(args.output_dir, quantize=args.quantization, vmap=args.vocab_mapping, force=args.force)
    except WarmstartError as error:
        flags = {f"--{flag.name}" for flag in (*CONVERTERS[command].flags, *COMMON) if not flag.refused}
        error.reword(lambda problem: in_words_of(command, flags, request.source, problem))
        raise
