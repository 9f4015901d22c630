"""Configurations of models: frozen values whose types and ranges are checked, every problem at once.

They have the names of pydantic's models (``model_validate``, ``model_dump`` …), and a plug-in's family may use those.
Families that are built in do not: to import pydantic takes half as long as to import everything that a conversion
needs.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Collection, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from warmstart.lean import dataclass

_REQUIRED: Any = object()
_LIMITS = {
    "gt": ("greater_than", operator.gt),
    "ge": ("greater_than_equal", operator.ge),
    "lt": ("less_than", operator.lt),
    "le": ("less_than_equal", operator.le),
}


class Invalid(ValueError):
    """Values that a configuration cannot have: ``errors()`` lists them as ``pydantic.ValidationError`` does."""

    def __init__(self, name: str, errors: Sequence[Mapping[str, Any]]) -> None:
        self._errors = errors
        said = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors]
        super().__init__(f"{name}: {'; '.join(said)}")

    def errors(self) -> Sequence[Mapping[str, Any]]:
        """Every problem: ``type``, ``loc`` (its keys), ``input``, ``msg``, and of limits ``ctx``."""
        return self._errors


@dataclass(frozen=True)
class Limits:
    """``Annotated[int, Limits(gt=0)]``: more than, at least, less than, at most."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def broken(self, value: float) -> tuple[str, dict[str, float]] | None:
        """The first that ``value`` breaks: what pydantic calls it, and the limit."""
        for name, (kind, holds) in _LIMITS.items():
            limit = getattr(self, name)
            if limit is not None and not holds(value, limit):
                return kind, {name: limit}
        return None


@dataclass(frozen=True)
class Key:
    """A key of a configuration, and its value where none is given."""

    default: Any = _REQUIRED

    def is_required(self) -> bool:
        """Whether it must be given."""
        return self.default is _REQUIRED

    def get_default(self, *, call_default_factory: bool = False) -> Any:
        """Its default; the flag is pydantic's."""
        del call_default_factory
        return self.default


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Config:
    """Base of a configuration: its annotations are its keys.

    Values are ``int``, ``float``, ``bool``, ``str``, a ``Literal``, a tuple, a mapping, another configuration, or one
    of these or None; ``Annotated`` with :class:`Limits`. Whole numbers may be given as floats, numbers of ``float`` as
    whole ones, tuples as lists. :meth:`requirements` are checked once all values are right.

    Raises:
        Invalid: of the constructor and :meth:`model_validate`.
    """

    model_fields: ClassVar[Mapping[str, Key]] = {}
    _types: ClassVar[Mapping[str, Any] | None] = None

    def __init_subclass__(cls) -> None:
        own = {name: Key(vars(cls).get(name, _REQUIRED)) for name in cls.__annotations__}
        cls.model_fields, cls._types = {**cls.model_fields, **own}, None

    def __init__(self, **values: Any) -> None:
        cls, errors = type(self), list[dict[str, Any]]()
        if cls._types is None:
            cls._types = get_type_hints(cls, include_extras=True)
        for name, key in cls.model_fields.items():
            if name in values:
                value = _checked(cls._types[name], values[name], (name,), errors)
            elif key.is_required():
                errors.append({"type": "missing", "loc": (name,), "input": values, "msg": "Field required"})
                continue
            else:
                value = key.default
            self.__dict__[name] = value
        for name in values.keys() - cls.model_fields.keys():
            found = {"type": "extra_forbidden", "loc": (name,), "input": values[name], "msg": "unknown key"}
            errors.append(found)
        if not errors:
            try:
                self.check()
            except ValueError as error:
                errors.append({"type": "value_error", "loc": (), "input": values, "msg": str(error)})
        if errors:
            raise Invalid(cls.__name__, errors)

    def check(self) -> None:
        """Whether the values go with each other.

        Raises:
            ValueError: they do not.
        """

    @classmethod
    def model_validate(cls, values: Any) -> Self:
        """The configuration with ``values``, a mapping.

        Raises:
            Invalid: everything that is wrong with them.
        """
        if not isinstance(values, Mapping):
            raise Invalid(cls.__name__, [{"type": "dict_type", "loc": (), "input": values, "msg": "no mapping"}])
        return cls(**{str(name): value for name, value in values.items()})

    def model_dump(
        self, *, mode: str = "python", include: Collection[str] | None = None, exclude: Collection[str] = ()
    ) -> dict[str, Any]:
        """Its values by key; with ``mode="json"`` as JSON has them (lists for tuples)."""
        names = [name for name in self.model_fields if (include is None or name in include) and name not in exclude]
        return {name: _dumped(getattr(self, name), mode == "json") for name in names}

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """The same with other values, which are not checked."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, **update)
        return copy

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


def _dumped(value: Any, json: bool) -> Any:
    if isinstance(value, Config):
        return value.model_dump(mode="json" if json else "python")
    if isinstance(value, tuple):
        return [_dumped(one, json) for one in value] if json else value
    return dict(value) if isinstance(value, Mapping) else value


_PLAIN = {int: "int_type", float: "float_type", bool: "bool_type", str: "string_type"}


def _checked(kind: Any, value: Any, place: tuple[str | int, ...], errors: list[dict[str, Any]]) -> Any:
    """``value`` as ``kind`` has it; what is wrong is added to ``errors``."""

    def wrong(type_: str, message: str, **context: Any) -> Any:
        errors.append({"type": type_, "loc": place, "input": value, "msg": message, "ctx": context})
        return value

    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        before = len(errors)
        found = _checked(arguments[0], value, place, errors)
        if len(errors) == before and found is not None:
            for limits in arguments[1:]:
                if isinstance(limits, Limits) and (broken := limits.broken(found)):
                    return wrong(broken[0], broken[0].replace("_", " "), **broken[1])
        return found
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (only,) = (one for one in arguments if one is not type(None))
        return _checked(only, value, place, errors)
    if origin is Literal:
        same = (one for one in arguments if one == value and type(one) is type(value))
        expected = " or ".join(", ".join(map(repr, arguments)).rsplit(", ", 1))
        return value if any(True for _ in same) else wrong("literal_error", f"not {expected}", expected=expected)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return wrong("tuple_type", "no list")
        each = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(value) > len(each):
            return wrong("too_long", f"more than {len(each)} values", max_length=len(each))
        if len(value) < len(each):
            missing = range(len(value), len(each))
            errors += [
                {"type": "missing", "loc": (*place, k), "input": value, "msg": "Field required"} for k in missing
            ]
            return value
        return tuple(_checked(one, v, (*place, k), errors) for k, (one, v) in enumerate(zip(each, value, strict=True)))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return value if isinstance(value, Mapping) else wrong("dict_type", "no mapping")
    if isinstance(kind, type) and issubclass(kind, Config):
        if isinstance(value, kind):
            return value
        try:
            return kind.model_validate(value)
        except Invalid as error:
            errors += [{**one, "loc": (*place, *one["loc"])} for one in error.errors()]
            return value
    if kind in _PLAIN and hasattr(value, "item"):  # of an array's type
        value = value.item()
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is int and isinstance(value, float):
        return wrong("int_from_float", "no whole number")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind and not (isinstance(value, kind) and not isinstance(value, bool)):
        return wrong(_PLAIN[kind], f"no {kind.__name__}")
    return value
