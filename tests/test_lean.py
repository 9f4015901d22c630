"""Our dataclasses behave as the standard library's."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from dataclasses import field

import pytest

from warmstart import lean


def classes(dataclass):
    @dataclass
    class Open:
        a: int
        b: list[int] = field(default_factory=list)
        c: str = field(default="x", repr=False)

    @dataclass(frozen=True)
    class Frozen:
        """Said."""

        a: int
        b: tuple[int, ...] = ()
        c: int = field(default=0, compare=False)

        def __post_init__(self) -> None:
            if self.a < 0:
                object.__setattr__(self, "a", 0)

    @dataclass(frozen=True)
    class Further(Frozen):
        d: int = 7

    @dataclass(frozen=True, kw_only=True)
    class Named:
        a: int = 1
        b: int

    @dataclass(frozen=True, eq=False)
    class Single:
        a: int

    @dataclass(frozen=True)
    class Empty:
        pass

    class Plain(Frozen):
        """No dataclass itself."""

    return {c.__name__: c for c in (Open, Frozen, Further, Named, Single, Empty, Plain)}


OURS, THEIRS = classes(lean.dataclass), classes(dataclasses.dataclass)
CALLS = [
    ("Open", (1,), {}), ("Open", (1, [2], "y"), {}), ("Open", (), {}), ("Open", (1,), {"b": [3]}),
    ("Open", (1, [], "", 4), {}),
    ("Frozen", (1,), {}), ("Frozen", (-1, (2,)), {}), ("Frozen", (), {"a": 1, "e": 2}), ("Further", (1, (), 3, 4), {}),
    ("Named", (1,), {}), ("Named", (), {"b": 2}), ("Named", (), {}), ("Single", (1,), {}), ("Empty", (), {}),
    ("Plain", (2,), {}),
]  # fmt: skip


def outcome(kinds, name, positional, named):
    try:
        made = kinds[name](*positional, **named)
    except TypeError as error:
        return str(error)
    return made


@pytest.mark.parametrize(("name", "positional", "named"), CALLS)
def test_what_is_made(name, positional, named):
    ours, theirs = (outcome(kinds, name, positional, named) for kinds in (OURS, THEIRS))
    if isinstance(theirs, str):
        assert ours == theirs
        return
    assert repr(ours) == repr(theirs)
    assert vars(ours) == vars(theirs)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    again = outcome(OURS, name, positional, named)
    assert (ours == again) == (theirs == outcome(THEIRS, name, positional, named))
    assert ours != theirs
    if name != "Single":
        values = [outcome(kinds, name, positional, named) for kinds in (OURS, THEIRS)]
        hashes = [getattr(type(value), "__hash__", None) is not None for value in values]
        assert hashes[0] == hashes[1]
        if hashes[0]:
            assert hash(ours) == hash(theirs) == hash(again)


@pytest.mark.parametrize("name", OURS)
def test_what_a_class_says(name):
    ours, theirs = OURS[name], THEIRS[name]
    assert str(inspect.signature(ours)) == str(inspect.signature(theirs))
    assert [f.name for f in dataclasses.fields(ours)] == [f.name for f in dataclasses.fields(theirs)]
    assert ours.__match_args__ == theirs.__match_args__


def test_frozen():
    for kinds in (OURS, THEIRS):
        one = kinds["Further"](1)
        for change in (lambda one=one: setattr(one, "a", 2), lambda one=one: delattr(one, "d")):
            with pytest.raises(dataclasses.FrozenInstanceError, match="field"):
                change()
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.unknown = 1
        plain = kinds["Plain"](1)
        plain.unknown = 1  # its class is none
        with pytest.raises(dataclasses.FrozenInstanceError):
            plain.a = 1
        assert dataclasses.replace(one, d=8) == kinds["Further"](1, d=8)
        assert copy.deepcopy(one) == one
        assert kinds["Open"](1).b is not kinds["Open"](1).b


def test_equality_is_the_tuples():
    nan = float("nan")
    for kinds in (OURS, THEIRS):
        assert kinds["Frozen"](nan) == kinds["Frozen"](nan)  # one object
        assert kinds["Frozen"](1, c=1) == kinds["Frozen"](1, c=2)
        assert kinds["Frozen"](1) != kinds["Further"](1)
        assert kinds["Single"](1) != kinds["Single"](1)


@lean.dataclass(frozen=True)
class AtTop:
    a: int
    rest: AtTop | None = None


def test_pickles_and_loops():
    one = AtTop(1, AtTop(2))
    assert pickle.loads(pickle.dumps(one)) == one
    object.__setattr__(one, "rest", one)
    assert repr(one) == "AtTop(a=1, rest=...)"
