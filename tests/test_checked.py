"""Configurations accept what pydantic's models of the same keys accept, and say what these say of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmstart.checked import Config, Invalid, Limits
from warmstart.errors import validation_problems


class Part(Config):
    kind: Literal["a", "b"]
    factors: tuple[float, ...] = ()


class Ours(Config):
    size: Annotated[int, Limits(gt=0)]
    rate: Annotated[float, Limits(ge=0.0, lt=1.0)] = 0.1
    most: Annotated[int, Limits(le=40)] | None = None
    name: str = "x"
    switch: bool = False
    word: Literal["one", "two", 4] = "one"
    pair: tuple[int, str] = (1, "a")
    table: tuple[tuple[Annotated[int, Limits(ge=0)], int], ...] = ()
    part: Part | None = None
    original: Mapping[str, Any] = {}

    def check(self) -> None:
        if self.switch and self.size > 100:
            raise ValueError("too large to switch")


class TheirPart(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    kind: Literal["a", "b"]
    factors: tuple[float, ...] = ()


class Theirs(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    size: Annotated[int, pydantic.Field(gt=0)]
    rate: Annotated[float, pydantic.Field(ge=0.0, lt=1.0)] = 0.1
    most: Annotated[int, pydantic.Field(le=40)] | None = None
    name: str = "x"
    switch: bool = False
    word: Literal["one", "two", 4] = "one"
    pair: tuple[int, str] = (1, "a")
    table: tuple[tuple[Annotated[int, pydantic.Field(ge=0)], int], ...] = ()
    part: TheirPart | None = None
    original: Mapping[str, Any] = {}

    @pydantic.model_validator(mode="after")
    def check(self) -> Theirs:
        if self.switch and self.size > 100:
            raise ValueError("too large to switch")
        return self


# Without texts of numbers and truth values as numbers (and the reverse), which pydantic takes and this refuses.
VALUES: dict[str, list[Any]] = {
    "size": [1, 3.0, 0, -1, 2.5, None, [], "x", 200], "rate": [0, 0.5, 1, 1.0, -0.1, "x", None, {}],
    "most": [None, 40, 41, 3.0, 3.5, "x"], "name": ["", "y", 1, None, ["y"]], "switch": [True, False, None, [], "x"],
    "word": ["one", 4, 5, "three", None, []], "pair": [[1, "b"], (2, ""), [1], [1, "a", 3], ["x", 1], 5, "ab", None],
    "table": [[], [[1, 2], [0, 3]], [[-1, 2]], [[1]], [1], "x", None, [[1, None], ["x", 2]]],
    "part": [None, {"kind": "a"}, {"kind": "c"}, {}, {"kind": "b", "factors": [1, 2.5]}, {"kind": "b", "more": 1}, 3],
    "original": [{}, {"a": [1]}, 3, None], "unknown": [1],
}  # fmt: skip


def said(kind, values):
    try:
        made = kind.model_validate(values)
    except (Invalid, pydantic.ValidationError) as error:
        return sorted(
            (e["type"].replace("model_type", "dict_type").replace("_parsing", "_type"), tuple(map(str, e["loc"])))
            for e in error.errors()
        ), [str(problem) for problem in validation_problems(error)]
    return made.model_dump(), made.model_dump(mode="json")


@given(st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in VALUES.items()}))
def test_as_pydantic(values):
    ours, theirs = said(Ours, values), said(Theirs, values)
    assert ours[0] == theirs[0]
    if isinstance(ours[0], dict):
        assert ours[1] == theirs[1]
    else:
        assert sorted(ours[1]) == sorted(theirs[1])


def test_values():
    one = Ours(size=np.int64(3), rate=np.float32(0.5), switch=np.True_, part=Part(kind="a"))
    assert (type(one.size), type(one.rate), one.switch) == (int, float, True)
    assert one == Ours.model_validate({**one.model_dump(mode="json"), "original": {}})
    assert one.model_copy(update={"size": 4}) == Ours(size=4, rate=0.5, switch=True, part=Part(kind="a"))
    assert one != one.model_copy(update={"size": 4})
    assert hash(Part(kind="a")) == hash(Part(kind="a", factors=[]))
    assert one.model_dump(include={"size", "rate"}) == {"size": 3, "rate": 0.5}
    assert one.model_dump(mode="json", exclude={"size"})["pair"] == [1, "a"]
    with pytest.raises(AttributeError, match="frozen"):
        one.size = 5
    with pytest.raises(AttributeError, match="frozen"):
        del one.size
    for refused in ("3", True):
        with pytest.raises(Invalid, match="size: no int"):
            Ours(size=refused)
    assert repr(Part(kind="a")) == "Part(kind='a', factors=())"
