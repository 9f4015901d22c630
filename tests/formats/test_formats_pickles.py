"""Pickles that want to run something, or to be endless. None runs; every one is data or one clear error."""

from __future__ import annotations

import codecs
import contextlib
import io
import math
import os
import pickle
import struct
import sys
import time
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import hostile
from warmstart.errors import CorruptCheckpoint, WarmstartError
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.pickled import PLAIN, Described, Named, PickledArray
from warmstart.formats.pickles import load
from warmstart.formats.torch_containers import MAGIC

TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x02"
    b"tQK\0K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
)
GOOD = b"\x80\x02}(X\x01\0\0\0a" + TENSOR + b"u."
NUMBERS = struct.pack("<2f", 1, 2)


def in_zip(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", NUMBERS)
        archive.writestr("x/version", "3\n")
    return path


def in_legacy(path: Path, pickled: bytes) -> Path:
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, {"little_endian": True}))
    path.write_bytes(head + pickled + pickle.dumps(["0"], 2) + struct.pack("<q", 2) + NUMBERS)
    return path


WRAPPERS = (in_zip, in_legacy)


def plain(data: bytes) -> Any:
    value, end = load(data, "test", PLAIN)
    assert end == len(data)
    return value


# what honest pickles hold

VALUES: list[Any] = [
    None,
    [True, False, 0, 1, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**63, -(2**70), 2**2000],
    [0.0, -1.5, math.inf, 1e300, "", "текст", "a\nb\\c'\"", "\U0001f600", b"", b"\0\xff'\"", b"x" * 300, "y" * 70000],
    {"a": [1, (2, 3, 4, 5)], 3: None, 2.5: "x", b"b": 1, None: 2, True: ()},
    (1, (2,), (3, 4), (5, 6, 7), ()),
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_plain_data_is_what_pickle_makes_of_it(value: Any, protocol: int) -> None:
    assert plain(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_containers_and_arrays(protocol: int) -> None:
    inner: list[Any] = []
    inner.append(inner)
    value = {
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        "default": defaultdict(list, {"x": [1]}),
        "counter": Counter("aab"),
        "set": {7},
        "frozen": frozenset([8]),
        "namespace": SimpleNamespace(a=1, b=SimpleNamespace(c=2)),
        "path": Path("/tmp/x/y.txt"),
        "complex": 1 + 2j,
        "bytearray": bytearray(b"\x00\x80"),
        "array": np.arange(6, dtype=">i4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": np.float32(1.5),
        "flag": np.bool_(True),
        "cycle": inner,
    }
    found = plain(pickle.dumps(value, protocol))
    assert found["ordered"] == {"b": 1, "a": 2}
    assert list(found["ordered"]) == ["b", "a"]
    assert found["default"] == {"x": [1]}
    assert found["counter"] == {"a": 2, "b": 1}
    assert list(found["set"]) == [7]
    assert list(found["frozen"]) == [8]
    assert found["namespace"] == {"a": 1, "b": {"c": 2}}
    assert found["path"] == "/tmp/x/y.txt"
    assert found["complex"] == 1 + 2j
    assert found["bytearray"] == b"\x00\x80"
    assert found["scalar"] == 1.5
    assert found["flag"] is True
    assert found["cycle"][0] is found["cycle"]
    for name in ("array", "columns"):
        assert isinstance(found[name], PickledArray)
        np.testing.assert_array_equal(found[name].read(), value[name])


class Stranger:
    def __init__(self) -> None:
        self.a, self.b = 1, "x"


class Slotted:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 5


class Many(list[int]):
    pass


@pytest.mark.parametrize("protocol", range(2, 6))
def test_unknown_classes_are_described(protocol: int) -> None:
    found = plain(pickle.dumps([Stranger(), Slotted(), Many([1, 2]), deque([3]), Stranger, np.array([{}])], protocol))
    stranger, slotted, many, queue, cls, objects = found
    assert isinstance(stranger, Described)
    assert stranger.name.endswith(".Stranger")
    assert stranger.attributes() == {"a": 1, "b": "x"}
    assert slotted.attributes() == {"a": 5}
    assert many.items == [1, 2]
    assert (queue.name, queue.items) == ("collections.deque", [3])
    assert isinstance(cls, Named)
    assert objects.dtype is None
    with pytest.raises(AttributeError):
        stranger.name = "other"


def test_a_tuple_as_a_key_is_text() -> None:
    value = {("a", 1): 1, (1, ("b", None, 2.5)): 2, ("a", "1"): 3}
    assert plain(pickle.dumps(value, 4)) == {repr(key): item for key, item in value.items()}
    with pytest.raises(CorruptCheckpoint, match="large tuple"):
        plain(pickle.dumps({(1,) * 100: 1}, 2))


def test_strings_of_python_2() -> None:
    assert plain(b"S'a\\'b\\n'\n.") == "a'b\n"
    assert plain(b"U\x02\xd0\x96.") == "Ж"
    assert plain(b"T\x02\0\0\0\xff\xfe.") == "ÿþ"
    assert plain(b"V\\u0416\n.") == "Ж"
    assert plain(b"L12L\n.") == 12
    assert plain(b"I01\n.") is True
    "".join(plain(b"X\x03\0\0\0\xed\xa0\x80.")).encode()  # a surrogate does not come out


# what hostile ones try

CANARY = "WARMSTART_CANARY"


def commands(path: Path) -> Iterator[tuple[str, bytes]]:
    """Pickles that each, given to ``pickle.load``, create the file ``path``."""
    command = f"touch {path}".encode()
    arguments = b"(X" + struct.pack("<I", len(command)) + command + b"t"
    short = b"\x8c\x05posix\x8c\x06system\x93"
    text = command.decode()
    yield "reduce", b"cposix\nsystem\n" + arguments + b"R."
    yield "reduce of a state", b"cposix\nsystem\n" + arguments + b"R}b."
    yield "stack_global", b"\x80\x04" + short + arguments + b"R."
    yield "inst", b"(S'" + command + b"'\niposix\nsystem\n."
    yield "obj", b"(cposix\nsystem\nS'" + command + b"'\no."
    yield "newobj", b"\x80\x02cposix\nsystem\n" + arguments + b"\x81."
    yield "newobj_ex", b"\x80\x04" + short + arguments + b"}\x92."
    yield "subprocess", b"csubprocess\ngetoutput\n" + arguments + b"R."
    yield "eval", b"cbuiltins\neval\n(V__import__('os').system('" + command + b"')\ntR."
    yield "exec", b"c__builtin__\nexec\n(Vimport os; os.system('" + command + b"')\ntR."
    yield "getattr", b"cbuiltins\ngetattr\n(cos\nsystem\nX\x08\0\0\0__call__tR" + arguments + b"R."
    yield "dotted", b"\x80\x04\x8c\x02os\x8c\x0fsystem.__call__\x93" + arguments + b"R."
    yield "attrgetter", b"coperator\nattrgetter\n(X\x06\0\0\0systemtR(cos\n__dict__\ntR" + arguments + b"R."
    yield "partial", b"cfunctools\npartial\n(cposix\nsystem\nS'" + command + b"'\ntR)R."
    yield "map", b"cbuiltins\nlist\n(cbuiltins\nmap\n(cposix\nsystem\n(S'" + command + b"'\nltRtR."
    yield "default factory", b"ccollections\ndefaultdict\n(cposix\nsystem\ntR."
    yield "setstate", b"ccodeop\nCompile\n)\x81}(X\x08\0\0\0compilercposix\nsystem\nub."
    yield "loads", b"cpickle\nloads\n(C" + bytes([8]) + b"cos\nabc\n" + b"tR."
    yield "load_from_bytes", b"ctorch.storage\n_load_from_bytes\n(" + _counted(b"cposix\nsystem\n" + arguments) + b"tR."
    yield (
        "rebuild_from_type",
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nctorch\nTensor\n" + arguments + b"}tR."),
    )
    yield "numpy objects", pickle.dumps(np.array([Canary(text)], object))
    yield "numpy load", b"cnumpy\nload\n(X\x01\0\0\0xNNtR."
    yield "codecs", b"c_codecs\nencode\n(X\x01\0\0\0xX\x03\0\0\0rottR."
    yield "import", b"cantigravity\nfly\n."
    yield "torch.jit", b"ctorch.jit._script\n_unpickle\n" + arguments + b"R."
    yield "memo", b"cposix\nsystem\nq\x010" + arguments + b"q\x020h\x01h\x02R."
    yield "persistent", arguments + b"Q."
    yield "persistent line", b"P" + command + b"\n."
    yield "class of a storage", b"((X\x07\0\0\0storagecposix\nsystem\nX\x01\0\0\x000X\x03\0\0\0cpuK\x02tQt."
    yield "reconstructor", b"ccopy_reg\n_reconstructor\n(cposix\nsystem\nc__builtin__\nobject\nNtR."
    yield "key", b"}cposix\nsystem\n" + arguments + b"RK\x01s."
    yield "protocol 0", pickle.dumps(Canary(text), 0)
    yield "protocol 5", pickle.dumps(Canary(text), 5)
    yield "inside a tensor", GOOD.replace(b"ccollections\nOrderedDict\n)R", b"cposix\nsystem\n" + arguments + b"R")


def _counted(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


class Canary:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_the_canary_sings(tmp_path: Path) -> None:
    """The collection is worth something: given to ``pickle``, most of it does run."""
    ran = 0
    for name, data in commands(tmp_path / CANARY):
        if name in (
            "inst",
            "reduce",
            "stack_global",
            "obj",
            "protocol 0",
            "protocol 5",
            "partial",
            "memo",
            "newobj_ex",
        ):
            with contextlib.suppress(Exception):  # of what is wanted after the command has run
                pickle.loads(data)
            ran += (tmp_path / CANARY).exists()
            (tmp_path / CANARY).unlink(missing_ok=True)
    assert ran >= 7


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_nothing_in_a_pickle_runs(tmp_path: Path, wrap: Any) -> None:
    hostile.read_all(wrap(tmp_path / "x.pt", GOOD))  # what is imported once is imported now
    for text in ("latin-1", "raw-unicode-escape", "utf-8"):
        codecs.lookup(text)
    modules = set(sys.modules)
    seen = 0
    events: list[str] = []
    watching = [True]

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if watching[0] and event in ("os.system", "subprocess.Popen", "exec", "compile", "pickle.find_class", "import"):
            events.append(f"{event} {details[:1]}")

    sys.addaudithook(hook)
    try:
        for name, data in commands(tmp_path / CANARY):
            for pickled in (data, b"\x80\x02}(X\x01\0\0\0z" + data[:-1] + b"X\x01\0\0\0a" + TENSOR + b"u."):
                path = wrap(tmp_path / "x.pt", pickled)
                try:
                    hostile.read_all(path)
                except WarmstartError:
                    continue
                finally:
                    seen += 1
                    assert not (tmp_path / CANARY).exists(), name
    finally:
        watching[0] = False
    assert events == []
    assert seen == 2 * len(list(commands(tmp_path)))
    assert not {"antigravity", "codeop"} & (set(sys.modules) - modules)


def bombs() -> Iterator[tuple[str, bytes]]:
    """Pickles that are short and want much."""
    doubled = {
        "lists": b"]q\x000" + b"".join(b"](h%ch%ceq%c0" % (k, k, k + 1) for k in range(100)) + b"hd",
        "tuples": b")q\x000" + b"".join(b"h%ch%c\x86q%c0" % (k, k, k + 1) for k in range(100)) + b"hd",
        "dicts": b"}q\x000"
        + b"".join(b"}(X\x01\0\0\0ah%cX\x01\0\0\0bh%cuq%c0" % (k, k, k + 1) for k in range(100))
        + b"hd",
        "objects": b"}q\x000" + b"".join(b"ca\nb\nh%ch%c\x86Rq%c0" % (k, k, k + 1) for k in range(100)) + b"hd",
        "tensors": TENSOR
        + b"q\x000"
        + b"".join(b"}(X\x01\0\0\0ah%cX\x01\0\0\0bh%cuq%c0" % (k, k, k + 1) for k in range(100))
        + b"hd",
        "groups": b"}(X\x06\0\0\0params]uq\x000"
        + b"".join(b"](h%ch%ceq%c0" % (k, k, k + 1) for k in range(100))
        + b"}(X\x05\0\0\0state}(K\x00}(X\x04\0\0\0stephduuX\x0c\0\0\0param_groups](h\0eu",
    }
    for name, twice in doubled.items():
        yield f"doubled {name}", b"\x80\x02" + twice + b"."
        yield f"doubled {name} as a key", b"\x80\x02}" + twice + b"K\x01s."
        yield f"doubled {name} in a set", b"\x80\x04\x8f(" + twice + b"\x90."
        yield f"doubled {name} as a state", b"\x80\x02ca\nb\n)R" + twice + b"b."
        yield f"doubled {name} as pairs", b"\x80\x02ccollections\nOrderedDict\n" + twice + b"\x85R."
        yield f"doubled {name} as a shape", GOOD.replace(b"K\x02\x85K", twice + b"K")
        yield f"doubled {name} as an offset", GOOD.replace(b"tQK\0", b"tQ" + twice)
        yield f"doubled {name} as a dtype", b"\x80\x02cnumpy\ndtype\n" + twice + b"\x85R."
        yield f"doubled {name} as a storage", GOOD.replace(b"X\x01\0\0\x000", twice)
    yield "deep lists", b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."
    yield "deep tuples", b"\x80\x02)" + b"\x85" * 20_000 + b"."
    yield "a deep tuple as a key", b"\x80\x02})" + b"\x85" * 20_000 + b"K\x01s."
    yield "deep dicts", b"\x80\x02" + b"}K\x01" * 20_000 + b"N" + b"s" * 20_000 + b"."
    yield "deep objects", b"\x80\x02" + b"ca\nb\n" * 20_000 + b")" + b"\x85R" * 20_000 + b"."
    yield "long binunicode8", b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x."
    yield "long binbytes8", b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b"x."
    yield "long bytearray8", b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x."
    yield "long long4", b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x."
    yield "negative long4", b"\x80\x02\x8b" + struct.pack("<i", -5) + b"x."
    yield "huge integer", b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"."
    yield "huge decimal", b"L" + b"9" * 10**6 + b"L\n."
    yield "a frame longer than the file", b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N."
    yield "protocol 6", b"\x80\x06N."
    yield "extension 1", b"\x80\x02\x82\x01."
    yield "extension 2", b"\x80\x02\x83\x01\0."
    yield "extension 4", b"\x80\x02\x84\x01\0\0\0."
    yield "next buffer", b"\x80\x05\x97."
    yield "readonly buffer", b"\x80\x05N\x98."
    yield "huge place in the memo", b"\x80\x02Nr\xff\xff\xff\xff."
    yield "a missing place in the memo", b"\x80\x02h\x07."
    yield "no mark", b"\x80\x02t."
    yield "an empty stack", b"\x80\x02R."
    yield "a mark for an object", b"\x80\x02(."
    yield "a mark for an argument", b"\x80\x02ca\nb\n(R."
    yield "append to a tuple", b"\x80\x02)Na."
    yield "set in a list", b"\x80\x02]NNs."
    yield "state of a list", b"\x80\x02]}b."
    yield "state of a number", b"\x80\x02K\x01}b."
    yield "an unhashable key", b"\x80\x02}]Ns."
    yield "no end", b"\x80\x02N"
    yield "two objects", b"\x80\x02NN."
    yield "nothing", b""
    yield "a name without an end", b"c" + b"a" * 10**6
    yield "a long name", b"c" + b"a" * 2000 + b"\nb\n."
    megabyte = b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\0"
    yield (
        "text encoded again and again",
        (b"\x80\x02](" + megabyte + b"".join([b"c_codecs\nencode\n(h\0X\x06\0\0\0latin1tR"] * 3000) + b"e."),
    )
    yield "text listed again and again", b"\x80\x02](" + megabyte + b"h\0" * 100_000 + b"e."
    thousand = b"](" + b"K\x01" * 10**5 + b"eq\0"
    yield "lists copied again and again", b"\x80\x02](" + thousand + b"cbuiltins\nset\nh\0\x85R" * 10**4 + b"e."
    pairs = b"}(" + b"".join(b"J%sN" % struct.pack("<i", k) for k in range(10**5)) + b"uq\0"
    yield "states set again and again", (b"\x80\x02" + pairs + b"0cargparse\nNamespace\n)R" + b"h\0b" * 10**5 + b".")
    yield (
        "joined names",
        b"\x80\x04X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\0" + b"h\0h\0\x930" * 10**4 + b".",
    )
    keys = [2**61 - 1 << k for k in range(200)]
    yield "integers with one hash", b"\x80\x02}(" + b"".join(pickle.dumps(key, 2)[2:-1] + b"N" for key in keys) + b"u."
    yield "a complex number as a key", b"\x80\x02}cbuiltins\ncomplex\nG" + bytes(8) + b"K\x00\x86RNs."
    huge = b"\x8a\x05" + (2**38).to_bytes(5, "little")
    yield "a huge tensor", GOOD.replace(b"K\x02\x85K\x01\x85", huge + b"\x85K\x01\x85")
    yield "a huge tensor of stride 0", GOOD.replace(b"K\x02\x85K\x01\x85", huge + b"\x85K\x00\x85")
    yield "a negative stride", GOOD.replace(b"K\x01\x85", b"J\xff\xff\xff\xff\x85")
    yield "a negative offset", GOOD.replace(b"tQK\0", b"tQJ\xff\xff\xff\xff")
    yield "an offset behind the end", GOOD.replace(b"tQK\0", b"tQK\x01")
    yield "a larger storage", GOOD.replace(b"cpuK\x02", b"cpuK\x03")
    yield "a storage of another key", GOOD.replace(b"X\x01\0\0\x000", b"X\x01\0\0\x007")
    yield "a storage elsewhere", GOOD.replace(b"X\x01\0\0\x000", b"X\x0a\0\0\x00../version")
    yield "numpy of another size", pickle.dumps(np.arange(4)).replace(b"K\x04\x85", b"K\x05\x85")
    yield "a dtype of 2 GB", pickle.dumps(np.arange(4)).replace(b"\x8c\x02i8", b"\x8c\x02V9")


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_no_pickle_asks_for_more_than_it_is_worth(tmp_path: Path, wrap: Any) -> None:
    for name, data in bombs():
        path = wrap(tmp_path / "x.pt", data)
        began = time.perf_counter()
        try:
            with hostile.limits(2.0):
                hostile.read_all(path)
        except WarmstartError:
            pass
        except BaseException as error:
            raise AssertionError(f"{name}: {type(error).__name__} {error}") from error
        assert time.perf_counter() - began < 2, name


def test_good_is_good(tmp_path: Path) -> None:
    for wrap in WRAPPERS:
        np.testing.assert_array_equal(open_checkpoint(wrap(tmp_path / "x.pt", GOOD)).read("a"), [1, 2])


def test_damaged_pickles(tmp_path: Path) -> None:
    """Mutants of pickles alone, past the checksum of the archive around them."""
    stream = io.BytesIO()
    torch.save(
        {"a": {"b": torch.ones(2)}, "n": np.arange(3), "c": Stranger(), "d": OrderedDict(x=[1, 2.5, "y"])}, stream
    )
    with zipfile.ZipFile(stream) as archive:
        originals = [archive.read("archive/data.pkl")]
    originals += [pickle.dumps([Stranger(), Many([1]), *VALUES[:3]], protocol) for protocol in (0, 2, 4)]
    originals.append(pickle.dumps(VALUES, 0))
    for number in range(hostile.count()):
        data = hostile.mutate(originals[number % len(originals)], number)
        path = in_zip(tmp_path / "x.pt", data)
        try:
            with hostile.limits(2.0):
                hostile.read_all(path)
        except WarmstartError:
            pass
        except Exception as error:
            raise AssertionError(f"mutant {number}: {type(error).__name__} {error}") from error


def test_errors_say_where(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpoint, match=r"x\.pt, data\.pkl, byte 11") as caught:
        open_checkpoint(in_zip(tmp_path / "x.pt", b"\x80\x04\x8d" + struct.pack("<Q", 99) + b"abc."))
    assert "99 bytes are announced and 4 are left" in str(caught.value)
