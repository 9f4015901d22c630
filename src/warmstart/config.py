"""One run's configuration: the rooms' pieces put together, validated whole, every problem reported at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from warmstart.bootstrap.start import StartConfig
from warmstart.errors import ConfigError, Problem, SourceError, validation_problem
from warmstart.keys import ADJUSTABLE, IDENTITY, Adjustable, Identity
from warmstart.kinds import Data
from warmstart.lean import dataclass
from warmstart.sources.config import SourcesConfig
from warmstart.sources.uri import at_home
from warmstart.training.config import TrainingConfig
from warmstart.vocabularies.config import VocabularyConfig


class DecodingConfig(BaseModel):
    """How validation is decoded; see ``warmstart translate``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beam_size: Adjustable[Annotated[int, Field(gt=0)]] = 1
    normalize: Adjustable[Annotated[float, Field(ge=0.0)]] = 0.0


class RunConfig(BaseModel):
    """Everything about one run. Paths are relative to the current directory.

    ``model`` holds the family's keys that differ from the source's (or, from scratch, from the defaults);
    ``vocabularies`` the sides that are not the source's (those of the family, such as ``source`` and ``target``, or
    ``shared`` for all of them); ``start`` one source or several.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Adjustable[Annotated[Path, AfterValidator(at_home)]]
    seed: Identity[int] = 1
    family: Identity[str] = "transformer"
    model: Identity[dict[str, Any]] = {}
    vocabularies: Identity[dict[str, VocabularyConfig]] = {}
    start: Identity[tuple[StartConfig, ...]] = ()
    sources: SourcesConfig = SourcesConfig()
    data: Data | None = None
    training: TrainingConfig | None = None
    decoding: DecodingConfig = DecodingConfig()

    @field_validator("start", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, dict) else value


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in the YAML file ``path`` with ``key.sub=value`` overrides (split at the first ``=``).

    Raises:
        SourceError: the file is missing.
        ConfigError: everything that is wrong with it.
    """
    if not path.is_file():
        raise SourceError(
            "the configuration is a directory" if path.is_dir() else "the configuration does not exist",
            where=path,
            expected="a YAML file",
        )
    tree = _read(path)
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not all(key.split(".")):
            raise ConfigError(f"{override!r} is no override", expected="key=value, for instance training.steps=100")
        _set(tree, key.split("."), _parse(value, f"the value of {key}", None), override)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("the configuration is not valid", where=path, problems=_problems(error, tree)) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("the configuration is not UTF-8", where=path, found=error) from None
    except OSError as error:
        raise SourceError("the configuration cannot be read", where=path, found=error.strerror) from None
    tree = _parse(text, "the configuration", path)
    if not isinstance(tree, dict):
        raise ConfigError("the configuration holds no keys", where=path, expected="key: value lines")
    return tree


def _parse(text: str, noun: str, where: Path | None) -> Any:
    """What ``text`` says in YAML; of keys that stand twice YAML takes the last, and this none."""
    import yaml

    twice: list[Problem] = []

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            first: dict[str, int] = {}
            for key, _ in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if name in first and name != "<<":
                    twice.append(Problem(f"{name} stands twice", found=f"lines {first[name]} and {line}"))
                first[name] = line
            return super().construct_mapping(node, deep)

    try:
        tree = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{noun} is not valid YAML", where=where, found=error) from None
    if twice:
        raise ConfigError(f"{noun} has keys twice", where=where, problems=twice, todo="remove one of the two")
    return tree


@dataclass(frozen=True)
class Change:
    """A key that has another value than when the run was begun; ``kind`` is ``identity`` or ``adjustable``."""

    key: str
    kind: str
    old: Any
    new: Any


def changes(old: BaseModel, new: BaseModel) -> list[Change]:
    """What differs between two configurations, key by key."""
    return list(_changes(old, new, "", None))


def _changes(old: BaseModel, new: BaseModel, prefix: str, inherited: str | None) -> Iterator[Change]:
    for name, field in type(new).model_fields.items():
        kind = next((m for m in field.metadata if m in (IDENTITY, ADJUSTABLE)), inherited)
        a, b = getattr(old, name), getattr(new, name)
        if isinstance(a, BaseModel) and type(a) is type(b):
            yield from _changes(a, b, f"{prefix}{name}.", kind)
        elif a != b:
            yield from _differing(prefix + name, kind or IDENTITY, _plain(a), _plain(b))


def _differing(key: str, kind: str, old: Any, new: Any) -> Iterator[Change]:
    """What differs between two values, key by key where both are of one type and have keys."""
    if isinstance(old, dict) and isinstance(new, dict) and old.get("type") == new.get("type"):
        for name in dict.fromkeys([*old, *new]):
            yield from _differing(f"{key}.{name}", kind, old.get(name), new.get(name))
    elif old != new:  # other secrets in a URL are no other source
        yield Change(key, kind, old, new)


def _plain(value: Any) -> Any:
    return TypeAdapter(Any).dump_python(value, mode="json")


def _set(tree: dict[str, Any], keys: Sequence[str], value: object, override: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{override!r} goes into {key}, which holds no keys")
    tree[keys[-1]] = value


_NO_KEYS = ("dict_type", "model_type", "model_attributes_type", "tuple_type")  # of pydantic's errors


def _problems(error: ValidationError, tree: object) -> list[Problem]:
    """What is wrong, once for each key: of a key that may be of several types pydantic says what each would want."""
    found: dict[str, list[Problem]] = {}
    for item in error.errors():
        where = ".".join(_keys(item["loc"], tree, missing=item["type"] == "missing"))
        found.setdefault(where, []).append(_problem(item, where))
    outer = {key for key in found for other in found if other.startswith(f"{key}.")}
    return [_joined(key, problems) for key, problems in found.items() if key not in outer]


def _joined(key: str, problems: Sequence[Problem]) -> Problem:
    """One problem of all; a sentence of our own, from a value that had the right type, says enough."""
    told = [problem for problem in problems if problem.expected is None]
    if told or len(problems) == 1:
        return (told or problems)[0]
    wanted = " or ".join(problem.expected for problem in problems if problem.expected)
    return Problem(f"{key} is not valid", expected=wanted, found=problems[0].found)


def _problem(item: Any, where: str) -> Problem:
    place, kind = [str(part) for part in item["loc"]], item["type"]
    if kind == "extra_forbidden":
        near = get_close_matches(place[-1], _known_keys(place[:-1]), n=1, cutoff=0.6) or _sections_with(place[-1])
        return Problem(f"unknown key {where}", todo=f"did you mean {' or '.join(near)}?" if near else "remove it")
    if kind == "missing":
        return Problem(f"{where} is missing", expected=_with_type(place))
    if kind == "union_tag_not_found":
        return Problem(f"{where} has no type", expected=_with_type(place))
    if kind == "union_tag_invalid":
        tag, tags = item["ctx"]["tag"], [name.strip(" '") for name in item["ctx"]["expected_tags"].split(",")]
        near = get_close_matches(tag, tags, n=1)
        meant = f"did you mean {near[0]}?" if near else None
        return Problem(f"{where}.type: there is no {tag!r}", expected=", ".join(tags), todo=meant)
    problem = validation_problem(item, where)
    keys = _with_type(place) or ", ".join(dict.fromkeys(_known_keys(place)))
    if kind in _NO_KEYS and (keys or kind == "dict_type"):
        expected = "a key for each" if kind == "dict_type" else keys
        return replace(problem, what=f"{where} has no keys", expected=expected)
    return problem


def _keys(place: Sequence[str | int], tree: Any, *, missing: bool) -> list[str]:
    """The keys and indices in ``place`` that ``tree`` has: pydantic also names which of several types it tried.
    The last one of a ``missing`` key stays."""
    found = []
    for number, part in enumerate(place):
        there = part in tree if isinstance(tree, dict) else isinstance(tree, list) and isinstance(part, int)
        if there:
            tree = tree[part]
        elif not (missing and number == len(place) - 1):
            continue
        found.append(str(part))
    return found


def _with_type(place: Sequence[str]) -> str | None:
    """What may stand at ``place``, where its ``type`` decides and is not chosen yet; None elsewhere."""
    fields = [m.model_fields["type"] for m in _models_at(place) if "type" in m.model_fields]
    names = [name for field in fields for name in get_args(field.annotation)]
    return f"{{type: …}} of {', '.join(names)}" if len(names) > 1 else None


def _known_keys(place: Sequence[str]) -> list[str]:
    """Keys that may stand at ``place``."""
    return [key for m in _models_at(place) for key in m.model_fields]


def _sections_with(key: str) -> list[str]:
    """Where ``key`` would stand below one of the top keys."""
    return [f"{section}.{key}" for section in RunConfig.model_fields if key in _known_keys([section])]


def _models_at(place: Sequence[str]) -> list[type[BaseModel]]:
    """The models of which one may stand at ``place``, found by walking them from the top; none where a value stands."""
    models: list[type[BaseModel]] = [RunConfig]
    for part in place:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        chosen = [m for m in models if "type" in m.model_fields and m.model_fields["type"].default == part]
        if fields:
            models = [inner for field in fields for inner in _models_in(field.annotation)]
        elif chosen:
            models = chosen
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in _models_in(argument)]
