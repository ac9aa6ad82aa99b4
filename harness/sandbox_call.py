"""Calls across the wall between a program that a model wrote and the tests that judge it: two processes, two pipes.

The *judge* runs the tests; what they call is a ``Remote``, which sends name and arguments as a line of JSON. The
*candidate* runs the program and answers each line. Only plain built-in values cross, rebuilt on the other side from
text: an object whose ``__eq__`` says yes, a patched ``assert`` or an expected value found in memory are all behind the
wall. Standard library only; loaded by ``harness.sandbox_child``.
"""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable
from typing import Any

LONGEST = 8 << 20  # bytes of one line
_COLLECTIONS = {"l": list, "t": tuple, "s": set, "z": frozenset}


class NotPlain(TypeError):
    """A value that is no built-in one, or holds one that is not."""


def pack(value: Any) -> Any:
    """``value`` as JSON can hold it. Subclasses cross as the built-in type below them. Raises NotPlain."""
    if value is None or isinstance(value, bool | str):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):
        return {"i": hex(int(value))}
    if isinstance(value, float):
        return {"f": float(value).hex()}
    if isinstance(value, complex):
        return {"c": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, bytes | bytearray):
        return {"b": bytes(value).hex()}
    if isinstance(value, dict):
        return {"d": [[pack(key), pack(item)] for key, item in dict.items(value)]}
    for letter, kind in _COLLECTIONS.items():
        if isinstance(value, kind):
            return {letter: [pack(item) for item in kind.__iter__(value)]}
    raise NotPlain(f"{type(value).__name__} is no plain built-in value")


def unpack(packed: Any) -> Any:
    """The value that ``pack`` was given, made of exact built-in types. Raises NotPlain for anything else."""
    if packed is None or type(packed) in (bool, str):
        return packed
    if type(packed) is not dict or len(packed) != 1:
        raise NotPlain("no packed value")
    ((letter, content),) = packed.items()
    if letter == "i":
        return int(content, 16)
    if letter == "f":
        return float.fromhex(content)
    if letter == "c":
        return complex(*map(float.fromhex, content))
    if letter == "b":
        return bytes.fromhex(content)
    if letter == "d":
        return {unpack(key): unpack(item) for key, item in content}
    if letter in _COLLECTIONS:
        return _COLLECTIONS[letter](map(unpack, content))
    raise NotPlain("no packed value")


class Line:
    """Lines of JSON over two file descriptors."""

    def __init__(self, inlet: int, outlet: int):
        self.inlet, self.outlet, self.rest = inlet, outlet, b""

    def send(self, content: Any) -> None:
        left = memoryview(json.dumps(content).encode() + b"\n")
        while left:
            left = left[os.write(self.outlet, left) :]

    def receive(self) -> Any:
        """Raises EOFError where the other side has gone, ValueError for what is no line of JSON."""
        while b"\n" not in self.rest:
            if len(self.rest) > LONGEST:
                raise ValueError("an answer is too long")
            more = os.read(self.inlet, 1 << 16)
            if not more:
                raise EOFError("the other side has gone")
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)


# --------------------------------------------------------------------------- the candidate's side


def serve(namespace: dict, failure: BaseException | None, line: Line) -> None:
    """Answer calls of the namespace's functions until the judge has gone; ``failure``: what the program ended with."""
    while True:
        try:
            name, arguments, keywords = line.receive()
        except EOFError:
            return
        try:
            if failure is not None:
                raise failure
            if name not in namespace:
                raise NameError(f"name {name!r} is not defined")
            given = {key: unpack(value) for key, value in keywords}
            answer = {"value": pack(namespace[name](*map(unpack, arguments), **given))}
        except BaseException as error:
            answer = {"raise": [type(error).__name__, _text(error)]}
        line.send(answer)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:300]
    except BaseException:
        return ""


# --------------------------------------------------------------------------- the judge's side


def remote(name: str, line: Line) -> Callable:
    """The candidate's function of that name. Calling it raises what the function raised, where that is a built-in error."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        line.send([name, [pack(value) for value in arguments], [[key, pack(value)] for key, value in keywords.items()]])
        answer = line.receive()
        if isinstance(answer, dict) and list(answer) == ["value"]:
            return unpack(answer["value"])
        raise _raised(*answer["raise"])

    call.__name__ = call.__qualname__ = name
    return call


def _raised(name: str, text: str) -> Exception:
    kind = getattr(builtins, name, None)
    # A StopIteration would end a loop or a map of the tests as if all were well.
    if isinstance(kind, type) and issubclass(kind, Exception) and name not in ("StopIteration", "StopAsyncIteration"):
        try:
            return kind(text)
        except TypeError:  # one that takes more than a text
            pass
    return RuntimeError(f"{name}: {text}")


class Names(dict):
    """Globals of the tests: a name that they do not define and that is no built-in one is the candidate's function."""

    def __init__(self, line: Line):
        super().__init__(__name__="tests", __remote__=lambda name: remote(name, line))
        self._line = line

    def __missing__(self, name: str) -> Callable:
        if name.startswith("__") or hasattr(builtins, name):
            raise KeyError(name)
        return remote(name, self._line)
