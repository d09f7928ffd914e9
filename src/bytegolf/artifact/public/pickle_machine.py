"""Pickles of strangers, read and never executed: plain values, descriptions of tensors, and inert placeholders.

A pickle is a program for a stack machine, and Python's own machine imports and calls whatever the program names. This
one knows the same instructions (``pickletools``, which only takes the stream apart), and for it a global is a *name*:
nothing is imported, no attribute is looked up, no method of an object from the file exists. What the few calls in
``CALLS`` stand for is done here, on values of our own. A call of anything else is refused; a new object of an unknown
class, as checkpoints hold them beside tensors (an omegaconf ListConfig, say), is an ``Inert`` that takes any state and
does nothing.

For instance ``cos\\nsystem\\nVid\\n\\x85R.`` pushes the name os.system, the text "id" and a tuple of it, and calls:
refused, because ``os.system`` is not in ``CALLS``.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any

from bytegolf.artifact.public.pickle_values import CALLS, Inert, Name, RefusedError, StorageAt, TensorAt, storage_of

MOST_STEPS, MOST_ARGUMENTS = 1_000_000, 16
"""Instructions of one pickle, of which a checkpoint of a thousand tensors has some 50,000; and what a call may take. No
call copies what it is given, so memory grows by an object per instruction at most."""


def unpickle(file: io.BytesIO, storages: list[StorageAt] | None = None) -> Any:
    """The value of the pickle that begins where ``file`` stands, which then stands behind it.

    ``file`` is held in memory: an instruction's claim of how long it is costs nothing. All storages that the pickle
    names are added to ``storages``. Raises RefusedError: it is cut short or no pickle, or it would call something.
    """
    machine = _Machine([] if storages is None else storages)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > MOST_STEPS:
                raise RefusedError("its pickle has too many instructions")
            if opcode.name == "STOP":
                return machine.pop()
            do = INSTRUCTIONS.get(opcode.name)
            if do is None:
                raise RefusedError(f"its pickle has the instruction {opcode.name}, which no checkpoint needs")
            do(machine, argument)
    except RefusedError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        # what pickletools raises of a stream that is none, and the machine of a program that takes what is not there
        raise RefusedError(f"its pickle is damaged ({type(error).__name__})") from error
    raise RefusedError("its pickle does not end")


class _Machine:
    """The stack, marks in it, and what was put aside by number."""

    def __init__(self, storages: list[StorageAt]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise RefusedError("its pickle is damaged (it takes more than there is)")
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def pop_any(self) -> None:
        """POP takes a mark off as well."""
        if self.marks and len(self.stack) == self.marks[-1]:
            self.marks.pop()
        else:
            self.stack.pop()

    def put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]  # a dict: a pickle may number its values as high as it likes

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Inert):
            raise RefusedError("its pickle appends to what is no list")

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            return
        if not isinstance(target, dict) or len(values) % 2:
            raise RefusedError("its pickle sets items of what is no dict")
        target.update(_dict(values))

    def call(self, what: Any, arguments: Any) -> None:
        if not isinstance(what, Name) or not isinstance(arguments, tuple) or len(arguments) > MOST_ARGUMENTS:
            raise RefusedError("its pickle calls what is no name of a class or function")
        known = CALLS.get((what.module, what.name))
        if known is None:
            raise RefusedError(f"its pickle calls {what}")
        self.push(known(what, *arguments))

    def make(self, what: Any) -> None:
        if not isinstance(what, Name):
            raise RefusedError("its pickle makes an object of what is no class's name")
        if what == Name("collections", "OrderedDict"):
            self.push({})
        else:
            self.push(Inert(what))

    def build(self) -> None:
        """The state of an object, which only inert ones have; that of tensors and dicts are attributes, not kept."""
        self.pop()
        if not isinstance(self.stack[-1], Inert | TensorAt | dict):
            raise RefusedError("its pickle gives a state to what is no object")


def _dict(values: list[Any]) -> dict[Any, Any]:
    """Keys and values one after the other. Only plain keys: the hash of a tuple nested in itself would take years."""
    if len(values) % 2:
        raise RefusedError("its pickle has a dict with half an item")
    for key in values[::2]:
        if not isinstance(key, str | int | float | bytes | None):
            raise RefusedError("its pickle has a dict with keys that are neither text nor numbers")
    return dict(zip(values[::2], values[1::2], strict=True))


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine.push(value)


def _new(kind: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine.push(kind(machine.since_mark()))


def _literal(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, argument: Any) -> None:
        machine.push(tuple(reversed([machine.pop() for _ in range(count)])))

    return make


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.push(Name(module, name))


def _stack_global(machine: _Machine, argument: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise RefusedError("its pickle has a global without a name")
    machine.push(Name(module, name))


def _reduce(machine: _Machine, argument: Any) -> None:
    arguments = machine.pop()
    machine.call(machine.pop(), arguments)


def _inst(machine: _Machine, argument: str) -> None:
    _global(machine, argument)
    name = machine.pop()
    machine.call(name, tuple(machine.since_mark()))


def _obj(machine: _Machine, argument: Any) -> None:
    what, *arguments = machine.since_mark()
    machine.call(what, tuple(arguments))


def _newobj(arguments: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, argument: Any) -> None:
        for _ in range(arguments):
            machine.pop()
        machine.make(machine.pop())

    return make


def _pop_mark(machine: _Machine, argument: Any) -> None:
    machine.since_mark()


def _append(machine: _Machine, argument: Any) -> None:
    value = machine.pop()
    machine.append([value])


def _set_item(machine: _Machine, argument: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _stored(machine: _Machine, argument: Any) -> None:
    found = storage_of(machine.pop())
    machine.storages.append(found)
    machine.push(found)


def _nothing(machine: _Machine, argument: Any) -> None:
    """PROTO and FRAME say how the stream is read, which pickletools has done."""


INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _literal),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _literal),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _literal),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _literal),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": lambda machine, argument: machine.push([]),
    "EMPTY_DICT": lambda machine, argument: machine.push({}),
    "EMPTY_SET": lambda machine, argument: machine.push(Inert(Name("builtins", "set"))),
    "MARK": lambda machine, argument: machine.mark(),
    "POP": lambda machine, argument: machine.pop_any(),
    "POP_MARK": _pop_mark,
    "DUP": lambda machine, argument: machine.push(machine.stack[-1]),
    "TUPLE": _new(tuple),
    "LIST": _new(list),
    "DICT": _new(_dict),
    "FROZENSET": _new(lambda values: Inert(Name("builtins", "frozenset"))),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": _append,
    "APPENDS": lambda machine, argument: machine.append(machine.since_mark()),
    "ADDITEMS": lambda machine, argument: machine.append(machine.since_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, argument: machine.set_items(machine.since_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "INST": _inst,
    "OBJ": _obj,
    "NEWOBJ": _newobj(1),
    "NEWOBJ_EX": _newobj(2),
    "BUILD": lambda machine, argument: machine.build(),
    "BINPERSID": _stored,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, argument: machine.put(argument)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, argument: machine.push(machine.memo[argument])),
    "MEMOIZE": lambda machine, argument: machine.put(len(machine.memo)),
}
"""What each instruction does. Missing, and so refused: extension codes, buffers outside, textual persistent names."""
