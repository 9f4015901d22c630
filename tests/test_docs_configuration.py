"""``docs/configuration.md`` names every key, with its default and whether it may change, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel

from warmstart.config import RunConfig, _models_in
from warmstart.keys import ADJUSTABLE, IDENTITY
from warmstart.models.registry import family

PAGE = Path(__file__).parents[1] / "docs/configuration.md"
REQUIRED = "required"


def keys(model: type[BaseModel], prefix: str = "", inherited: str | None = None) -> Iterator[tuple[str, Any, bool]]:
    """(key, default, whether it may change) of everything below ``model``; ``(TYPE)`` stands where a type decides."""
    for name, field in model.model_fields.items():
        key = prefix + name
        kind = next((m for m in getattr(field, "metadata", ()) if m in (IDENTITY, ADJUSTABLE)), inherited)
        inner = _models_in(getattr(field, "annotation", None))
        if name == "type" and not field.is_required():
            continue
        if not isinstance(field.default, BaseModel):
            yield key, REQUIRED if field.is_required() else field.default, kind == ADJUSTABLE
        for one in inner:
            chosen = f"({one.model_fields['type'].default})" if len(inner) > 1 else ""
            below = ".NAME" if get_origin(getattr(field, "annotation", None)) is dict else ""
            yield from keys(one, f"{key}{chosen}{below}.", kind)


def plain(value: Any) -> Any:
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def documented() -> Iterator[tuple[str, Any, bool | None]]:
    """The rows of the page's tables; None where a table says nothing of changes."""
    prefix = ""
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("#"):
            named = re.findall("`([^`]+)`", line)
            prefix = f"{named[0]}({named[1]})." if len(named) > 1 else f"{named[0]}." if named else ""
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and cells[0].startswith("`"):
            default = REQUIRED if cells[1] == REQUIRED else yaml.safe_load(cells[1].strip("`"))
            yield prefix + cells[0].strip("`"), default, cells[2] == "yes" if len(cells) == 4 else None


def test_every_key_is_documented_with_its_default() -> None:
    rows = list(documented())
    expected = {key: (plain(default), may) for key, default, may in keys(RunConfig)}
    for name in ("transformer", "deepspeech"):
        expected |= {key: (plain(v), may) for key, v, may in keys(family(name).config_type, f"model({name}).")}
    assert len({key for key, *_ in rows}) == len(rows)
    assert {key: default for key, default, _ in rows} == {key: default for key, (default, _) in expected.items()}
    said = {key: may for key, _, may in rows if may is not None}
    assert said == {key: expected[key][1] for key in said}
    assert {key for key in expected if key.startswith("training.")} - set(said) == {
        key for key in expected if key.startswith(("training.schedule(", "training.optimizer("))
    }


def test_which_other_keys_may_change_is_said_in_one_sentence() -> None:
    may = {key for key, _, may in keys(RunConfig) if may and not key.startswith("training.")}
    others = {"run", "sources.mirrors", "decoding.beam_size", "decoding.normalize"}
    assert may == others | {"data(speech).feature_cache"}
