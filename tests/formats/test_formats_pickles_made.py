"""Pickles made by chance that are valid to the last opcode: constructors with foreign arguments, states for what has
none, optimizers of nonsense. Each is data or one clear error."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from test_formats_pickles import GOOD, TENSOR, in_zip

import hostile
from warmstart.errors import WarmstartError
from warmstart.formats.torch_tensors import TORCH

NAMES = [*TORCH, "a.B", "torch.float32", "torch.FloatStorage", "numpy.ndarray", "__torch__.A", "builtins.getattr"]
WORDS = "a 0 < > = f4 f8 U3 state params param_groups param_names exp_avg row_var step model model.a storage cpu latin1"
KEYS = [*WORDS.split(), "_parameters", "_modules", "_buffers", "_non_persistent_buffers_set", "conj"]
LEAVES = [
    *(b"N", b"\x88", b"\x89", b"J\xff\xff\xff\xff", b"C\x04abcd", b"\x8a\x09" + bytes(8) + b"\x01", b")", b"]", b"}"),
    *(b"K\x02\x85", TENSOR, TENSOR, TENSOR, *(b"K" + bytes([number]) for number in range(5))),
    *(b"G" + struct.pack(">d", number) for number in (1.5, float("nan"), float("inf"), 1e300)),
]


class Maker:
    """Pickles from one seed; ``thing`` gives the opcodes that push one object."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.memo = 0

    def pickle(self) -> bytes:
        things = b"".join(_text("bcd"[k]) + self.thing(4) for k in range(self.chance.randrange(1, 4)))
        return b"\x80\x04}(" + _text("model") + b"}(" + _text("a") + TENSOR + b"u" + things + b"u."

    def several(self, depth: int, most: int = 4) -> bytes:
        return b"".join(self.thing(depth) for _ in range(self.chance.randrange(most + 1)))

    def name(self) -> bytes:
        module, _, name = self.chance.choice(NAMES).rpartition(".")
        return f"c{module}\n{name}\n".encode()

    def pairs(self, depth: int) -> bytes:
        keys = (_text(self.chance.choice(KEYS)) if self.chance.random() < 0.8 else self.thing(depth) for _ in range(4))
        return b"".join(key + self.thing(depth) for key in keys if self.chance.random() < 0.6)

    def thing(self, depth: int) -> bytes:
        kind = self.chance.randrange(12 if depth > 0 else 3)
        if kind == 0:
            return _text(self.chance.choice(KEYS))
        if kind == 1 and self.memo:
            return b"h" + bytes([self.chance.randrange(self.memo)])
        if kind < 3:
            return self.chance.choice([*LEAVES, self.name()])
        inner = depth - 1
        if kind == 3:
            return b"(" + self.several(inner) + b"t"
        if kind == 4:
            return b"](" + self.several(inner) + b"e"
        if kind == 5:
            return b"}(" + self.pairs(inner) + b"u"
        if kind in (6, 7, 8):
            return self.name() + b"(" + self.several(inner, 7) + b"t" + self.chance.choice([b"R", b"\x81"])
        if kind == 9:
            return self.thing(inner) + self.thing(inner) + b"b"
        if kind == 10:
            made = self.thing(inner) + b"q" + bytes([self.memo])
            self.memo = min(self.memo + 1, 200)
            return made
        return self.optimizer(inner)

    def optimizer(self, depth: int) -> bytes:
        def parameter() -> bytes:
            return self.chance.choice([b"K\0", b"K\x01", TENSOR, self.thing(depth)])

        def state() -> bytes:
            slots = [_text(slot) + self.chance.choice([TENSOR, b"K\x03", self.thing(depth)]) for slot in KEYS[11:14]]
            return parameter() + b"}(" + b"".join(slots) + b"u"

        groups = b"".join(b"}(" + _text("params") + b"](" + parameter() * k + b"eua" for k in range(3))
        return b"}(" + _text("state") + b"}(" + state() + b"u" + _text("param_groups") + b"]" + groups + b"u"


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def test_pickles_made_by_chance(tmp_path: Path) -> None:
    opened = 0
    hostile.read_all(in_zip(tmp_path / "x.pt", GOOD))
    for seed in range(2 * hostile.count()):
        data = Maker(seed).pickle()
        try:
            with hostile.limits(2.0):
                hostile.read_all(in_zip(tmp_path / "x.pt", data))
            opened += 1
        except WarmstartError:
            pass
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__} {error}\n{data!r}") from error
    assert opened > hostile.count() / 4
