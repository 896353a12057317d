"""Reads pickles of numpy arrays, the format of Detectron2's model zoo, of which no part executes.

A pickle is a program that calls what it names. The few names that such files need are answered by functions of this
module, which check their arguments. numpy's own would accept types and states from which arrays point anywhere.
"""

import io
import itertools
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from clq.errors import reason_of

_STEPS = {step.code: step for step in pickletools.opcodes}
_NUMBERS = re.compile(r"[<>|=]?[biufc?]\d{0,2}")  # the names of the types of numbers: f4, |b1, ?


class ForbiddenName(Exception):
    """A pickle calls something else than numpy's arrays and plain containers; the message is its name."""


class BrokenPickle(Exception):
    """A pickle is damaged; the message is the reason."""


def read_arrays(content: bytes) -> Any:
    """Reads a pickle of numpy arrays of numbers, plain containers and plain values.

    Args:
        content: bytes of the pickle.

    Raises:
        BrokenPickle: it is damaged.
        ForbiddenName: it calls something else.
    """
    try:
        _check_memo(content)
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except ForbiddenName:
        raise
    except MemoryError as e:
        raise BrokenPickle("it asks for more memory than there is") from e
    except Exception as e:  # a damaged pickle can raise anything
        raise BrokenPickle(reason_of(e)) from e


def _check_memo(content: bytes) -> None:
    """Checks the numbers under which a pickle stores its objects: Python fills a table up to the largest one.

    Raises:
        ValueError: a number is larger than the count of steps so far, or a step is not one of pickle.
    """
    stream, argument = io.BytesIO(content), None
    for count in itertools.count():
        code = stream.read(1).decode("latin1")
        if code not in _STEPS:
            raise ValueError(f"its step {count} is none of a pickle")
        step = _STEPS[code]
        if step.name == "STRING":
            stream.readline()  # in any encoding, while pickletools reads ASCII alone
        elif step.arg is not None:
            argument = step.arg.reader(stream)
        if step.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise ValueError(f"it stores object {argument} at step {count}")
        if step.name == "STOP":
            return


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and plain containers; refuses every other name that a pickle calls."""

    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.get((module, name))
        if found is None:
            raise ForbiddenName(f"{module}.{name}")
        return found


class _Type:
    """A numpy type of numbers, of which a pickle states the name first and the order of the bytes later."""

    def __init__(self, name: str, *_: object) -> None:
        if not isinstance(name, str) or not _NUMBERS.fullmatch(name):
            raise ValueError(f"arrays of {name!r} are not weights")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"there is no order of bytes {state[1]!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that a pickle makes empty first and fills later."""

    def __setstate__(self, state: tuple) -> None:  # type: ignore[override]
        version, shape, kind, is_fortran, raw = state
        if isinstance(raw, str):  # written by Python 2
            raw = raw.encode("latin1")
        super().__setstate__((version, shape, _dtype(kind), bool(is_fortran), _bytes(raw)))  # type: ignore[arg-type]


def _dtype(kind: object) -> np.dtype:
    if not isinstance(kind, _Type):
        raise ValueError("an array has no type")
    return kind.dtype


def _bytes(raw: object) -> bytes | bytearray:
    if not isinstance(raw, (bytes, bytearray)):
        raise ValueError("an array has no data")
    return raw


def _reconstruct(_: object, shape: tuple, __: object) -> np.ndarray:
    if shape != (0,):
        raise ValueError("an array begins with a size")
    return _Array((0,), np.int8)


def _scalar(kind: object, raw: object) -> np.generic:
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    return np.frombuffer(_bytes(raw), _dtype(kind), count=1)[0]


def _from_buffer(raw: object, kind: object, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(_bytes(raw), _dtype(kind)).reshape(shape, order=order)  # type: ignore[call-overload]


def _no_bytes() -> bytes:
    """How older protocols write the data of an array without elements."""
    return b""


def _encode(text: str, encoding: str) -> bytes:
    """How the pickles of Python 2 and of older protocols write bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes are encoded in {encoding!r}")
    return text.encode("latin1")


# What such pickles call, by module and name, in numpy's old and new spelling.
_NAMES: dict[tuple[str, str], Callable | str] = {
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): "numpy.ndarray",  # only an argument of _reconstruct
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
