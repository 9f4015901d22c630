"""Pickles without ``pickle``: a stack machine that builds plain data and runs nothing that a file names.

Opcodes: CPython, Lib/pickletools.py (protocols 0 to 5). A class or function in a file is text here (:class:`Named`);
what the file would call or construct becomes plain data where the caller's table of constructors has that very
name, and otherwise an inert :class:`Described`. Nothing is imported or looked up by a name from the file.

Each opcode takes at least one byte and constant work, apart from those that copy what the file's memo may name
again and again; what these copy is counted against a budget in proportion to the file.
"""

from __future__ import annotations

import codecs
import mmap
import struct
from collections.abc import Callable, Mapping
from typing import Any

from warmstart.errors import CorruptCheckpoint
from warmstart.formats.pickle_stream import F8, I4, U1, U2, U4, U8, Stream
from warmstart.formats.pickled import MAX_NAME, Budget, Described, Named, Refused, checked_key

Constructor = Callable[[tuple[Any, ...]], Any]
MAX_INTEGER = 1000  # bytes; Python itself refuses to print integers of more than 4,300 digits
# what our constructors raise on arguments that are not theirs
DAMAGED = (*(IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, struct.error, MemoryError),)
_MARK = object()


def load(
    data: bytes | mmap.mmap,
    where: str,
    constructors: Mapping[str, Constructor],
    persistent: Callable[[Any], Any] | None = None,
    start: int = 0,
) -> tuple[Any, int]:
    """The object pickled in ``data`` from ``start``, and where its pickle ends.

    ``constructors`` maps dotted names to functions of ours, called with the arguments' tuple; ``persistent`` turns
    the file's persistent identifiers into values.

    Raises:
        CorruptCheckpoint: the pickle is damaged, truncated, or asks for what cannot be had from data alone.
    """
    machine = Machine(data, constructors, persistent, start)
    try:
        return machine.run(), machine.position
    except DAMAGED as error:
        raise CorruptCheckpoint(
            "damaged pickle",
            where=f"{where}, byte {machine.position}",
            expected="plain data, arrays and objects that can be described",
            found=_in_words(error),
            todo="download or copy it again; if it is as its author wrote it, save its arrays as safetensors",
        ) from error


def _in_words(error: Exception) -> str:
    if isinstance(error, IndexError):
        return "an end before the end, or an operation on what is not there"
    words = str(error)[:200] if all(isinstance(word, str) for word in error.args) else ""
    return words if isinstance(error, Refused) else f"{type(error).__name__} {words}".strip()


class Machine(Stream):
    """The state while one pickle is read. ``names`` holds every class and function that the file named so far."""

    def __init__(
        self,
        data: bytes | mmap.mmap,
        constructors: Mapping[str, Constructor],
        persistent: Callable[[Any], Any] | None = None,
        start: int = 0,
    ) -> None:
        super().__init__(data, start)
        self.names: dict[str, Named] = {}
        self._constructors, self._persistent = constructors, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._budget = Budget(4)

    def run(self) -> Any:
        stack, data, memo, operations = self._stack, self.data, self._memo, _OPERATIONS
        while True:
            code = data[self.position]
            self.position += 1
            if code == 0x4B:  # BININT1, the first of the four that are most of a file
                stack.append(data[self.position])
                self.position += 1
            elif code == 0x71 and stack[-1] is not _MARK:  # BINPUT
                memo[data[self.position]] = stack[-1]
                self.position += 1
            elif code == 0x68:  # BINGET
                self.get(data[self.position])
                self.position += 1
            elif code == 0x28:  # MARK
                stack.append(_MARK)
            elif code == 0x2E:  # STOP
                value = self._pop()
                if stack:
                    raise Refused(f"{len(stack)} objects left over at the end")
                return value
            elif code in operations:
                operations[code](self)
            else:
                raise Refused(f"opcode {bytes([code])!r} is unknown or needs more than the file")

    # the stack

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise Refused("a mark where an object is needed")
        return value

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise Refused("a mark where an object is needed")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        stack = self._stack
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise Refused("no mark")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    # objects

    def named(self, module: str, name: str) -> Named:
        full = f"{module}.{name}"
        if len(full) > MAX_NAME:
            raise Refused(f"a name of {len(full)} characters")
        known = self.names.get(full)
        if known is None:
            known = self.names[full] = Named(full)
        return known

    def _construct(self, callee: Any, arguments: Any) -> Any:
        """What calling ``callee`` would give, if it is one that data can stand for; else its description."""
        if not isinstance(arguments, tuple):
            raise Refused(f"arguments that are a {type(arguments).__name__}")
        if not isinstance(callee, Named):
            return Described("the result of a call", (callee, *arguments))
        constructor = self._constructors.get(callee.name)
        if constructor is None:
            return Described(callee.name, arguments)
        self._budget.spend_on(arguments, self.position - self.start)
        return constructor(arguments)

    def _append(self, target: Any, items: list[Any]) -> None:
        if type(target) is list:
            target.extend(items)
        elif isinstance(target, Described):
            target.items.extend(items)
        else:
            raise Refused(f"items added to a {type(target).__name__}")

    def _set(self, target: Any, items: list[Any]) -> None:
        if len(items) % 2:
            raise Refused("a key without a value")
        if isinstance(target, dict):
            for at in range(0, len(items), 2):
                target[checked_key(items[at])] = items[at + 1]
        elif isinstance(target, Described):
            target.items.extend(zip(items[::2], items[1::2], strict=True))
        else:
            raise Refused(f"items set in a {type(target).__name__}")

    # opcodes, in the order of pickletools

    def int_line(self) -> None:
        line = self.line()
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else _integer(line))

    def long1(self) -> None:
        self._push(_long(self.counted(U1)))

    def long4(self) -> None:
        self._push(_long(self.counted(I4)))

    def long_line(self) -> None:
        self._push(_integer(self.line().removesuffix(b"L")))

    def string_line(self) -> None:
        line = self.line(None)
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
            raise Refused("a string without quotes")
        raw: bytes = codecs.escape_decode(line[1:-1])[0]
        self._push(_old_text(raw))

    def float_line(self) -> None:
        self._push(float(self.line()))

    def unicode_line(self) -> None:
        text = self.line(None).decode("raw-unicode-escape")
        self._push(text.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace"))

    def bytearray8(self) -> None:
        self._push(self.counted(U8))

    def frame(self) -> None:
        if self.number(U8) > len(self.data) - self.position:
            raise Refused("a frame longer than the file")

    def protocol(self) -> None:
        version = self.number(U1)
        if version > 5:
            raise Refused(f"protocol {version}, and 5 is the last one known")

    def pop(self) -> None:
        self._stack.pop()  # also of a mark

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._top()

    def put(self, index: int) -> None:
        if index < 0:
            raise Refused("a negative place in the memo")
        self._memo[index] = self._top()

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise Refused(f"place {index} of the memo is empty")
        self._push(self._memo[index])

    def tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)))

    def dict_marked(self) -> None:
        items = self._since_mark()
        self._push({})
        self._set(self._stack[-1], items)

    def append(self) -> None:
        value = self._pop()
        self._append(self._top(), [value])

    def appends(self) -> None:
        items = self._since_mark()
        self._append(self._top(), items)

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set(self._top(), [key, value])

    def set_items(self) -> None:
        items = self._since_mark()
        self._set(self._top(), items)

    def global_line(self) -> None:
        module, name = self.line().decode(), self.line().decode()
        self._push(self.named(module, name))

    def global_stack(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refused("a name that is not text")
        if len(name) + len(module) > MAX_NAME:
            raise Refused("a name that is too long")
        self._push(self.named(module, name))

    def reduce(self) -> None:
        arguments, callee = self._pop(), self._pop()
        self._push(self._construct(callee, arguments))

    def build(self) -> None:
        state, target = self._pop(), self._top()
        if not hasattr(target, "set_state"):
            raise Refused(f"a state for a {type(target).__name__}")
        self._budget.spend_on((state,), self.position - self.start)
        target.set_state(state)

    def instance_line(self) -> None:
        module, name = self.line().decode(), self.line().decode()
        self._push(self._construct(self.named(module, name), tuple(self._since_mark())))

    def object_marked(self) -> None:
        callee, *arguments = self._since_mark()
        self._push(self._construct(callee, tuple(arguments)))

    def new_object(self) -> None:
        self.reduce()

    def new_object_with_keywords(self) -> None:
        keywords, arguments, callee = self._pop(), self._pop(), self._pop()
        if not isinstance(keywords, dict) or not isinstance(arguments, tuple):
            raise Refused("arguments that are not a tuple and a dict")
        if keywords:
            name = callee.name if isinstance(callee, Named) else "the result of a call"
            self._push(Described(name, (*arguments, keywords)))
        else:
            self._push(self._construct(callee, arguments))

    def persistent_line(self) -> None:
        self._resolve(self.line().decode())

    def persistent_stack(self) -> None:
        self._resolve(self._pop())

    def _resolve(self, identifier: Any) -> None:
        if self._persistent is None:
            raise Refused("an identifier of something outside the pickle")
        self._push(self._persistent(identifier))


def _integer(line: bytes) -> int:
    if not line.lstrip(b"+-").isdigit():
        raise Refused("not an integer")
    return int(line)


def _long(data: bytes) -> int:
    if len(data) > MAX_INTEGER:
        raise Refused(f"an integer of {len(data)} bytes")
    return int.from_bytes(data, "little", signed=True)


def _old_text(data: bytes) -> str:
    """Python 2 did not tell text from bytes."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


_OPERATIONS: dict[int, Callable[[Machine], None]] = {
    ord(code): operation
    for code, operation in {
        "I": Machine.int_line,
        "J": lambda m: m._push(m.number(I4)),
        "K": lambda m: m._push(m.byte()),
        "M": lambda m: m._push(m.number(U2)),
        "L": Machine.long_line,
        "\x8a": Machine.long1,
        "\x8b": Machine.long4,
        "S": Machine.string_line,
        "T": lambda m: m._push(_old_text(m.counted(I4))),
        "U": lambda m: m._push(_old_text(m.counted(U1))),
        "B": lambda m: m._push(m.counted(U4)),
        "C": lambda m: m._push(m.counted(U1)),
        "\x8e": lambda m: m._push(m.counted(U8)),
        "\x96": Machine.bytearray8,
        "N": lambda m: m._push(None),
        "\x88": lambda m: m._push(True),
        "\x89": lambda m: m._push(False),
        "V": Machine.unicode_line,
        "\x8c": lambda m: m._push(m.counted(U1).decode("utf-8", "backslashreplace")),
        "X": lambda m: m._push(m.counted(U4).decode("utf-8", "backslashreplace")),
        "\x8d": lambda m: m._push(m.counted(U8).decode("utf-8", "backslashreplace")),
        "F": Machine.float_line,
        "G": lambda m: m._push(m.number(F8)),
        "]": lambda m: m._push([]),
        "a": Machine.append,
        "e": Machine.appends,
        "l": lambda m: m._push(m._since_mark()),
        ")": lambda m: m._push(()),
        "t": lambda m: m._push(tuple(m._since_mark())),
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "}": lambda m: m._push({}),
        "d": Machine.dict_marked,
        "s": Machine.set_item,
        "u": Machine.set_items,
        "\x8f": lambda m: m._push([]),  # a set: its items in the file's order
        "\x90": Machine.appends,
        "\x91": lambda m: m._push(tuple(m._since_mark())),  # a frozenset
        "0": Machine.pop,
        "2": lambda m: m._push(m._top()),
        "(": lambda m: m._push(_MARK),
        "1": lambda m: m._since_mark().clear(),
        "g": lambda m: m.get(_integer(m.line())),
        "h": lambda m: m.get(m.byte()),
        "j": lambda m: m.get(m.number(U4)),
        "p": lambda m: m.put(_integer(m.line())),
        "q": lambda m: m.put(m.byte()),
        "r": lambda m: m.put(m.number(U4)),
        "\x94": Machine.memoize,
        "c": Machine.global_line,
        "\x93": Machine.global_stack,
        "R": Machine.reduce,
        "b": Machine.build,
        "i": Machine.instance_line,
        "o": Machine.object_marked,
        "\x81": Machine.new_object,
        "\x92": Machine.new_object_with_keywords,
        "\x80": Machine.protocol,
        "\x95": Machine.frame,
        "P": Machine.persistent_line,
        "Q": Machine.persistent_stack,
    }.items()
}
