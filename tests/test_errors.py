"""Exceptions of Detectron2 for values it does not accept become a UserError; a UserError is one line."""

import pickle

import pytest
from clq.data.images import ImageError
from clq.engine.nonfinite import NonFiniteError
from clq.errors import UserError, blamed_on, reason_of
from torch._utils import ExceptionWrapper


def test_a_value_that_detectron2_does_not_accept_is_blamed_on_the_keys():
    with (
        pytest.raises(UserError, match=r"^SOLVER\.X: Detectron2 refuses these values \(KeyError 'y'\)"),
        blamed_on("SOLVER.X"),
    ):
        {}["y"]


def test_other_failures_keep_their_type():
    with pytest.raises(RuntimeError), blamed_on("SOLVER.X"):
        raise RuntimeError


@pytest.mark.parametrize(
    "message, expected",
    [
        ("a.pth: plain  text, ü and 中", "a.pth: plain  text, ü and 中"),
        ("a\nb\r\x1b[31m\x0b\0", r"a\nb\r\x1b[31m\x0b\x00"),
        ("\u2028\ud800\xa0", r"\u2028\ud800\xa0"),
    ],
)
def test_a_message_is_one_line_that_any_terminal_shows_as_it_is(message, expected):
    """Names in files may hold anything."""
    assert str(UserError(message)) == expected
    assert str(pickle.loads(pickle.dumps(UserError(message)))) == expected


@pytest.mark.parametrize("kind", [UserError, ImageError, NonFiniteError])
def test_the_error_of_a_loaders_worker_is_its_line(kind):
    """torch raises it anew, with a traceback as its message."""
    try:
        raise kind("a.png: is\ndamaged")
    except UserError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(kind) as e:
        wrapped.reraise()
    assert str(e.value) == r"a.png: is\ndamaged"


@pytest.mark.parametrize(
    "error, reason",
    [
        (FileNotFoundError(2, "No such file or directory", "a.png"), "No such file or directory"),
        (ValueError(" two\n  lines "), "two lines"),
        (ValueError("x" * 300), "x" * 200),
        (MemoryError(), "MemoryError"),
    ],
)
def test_the_reason_of_an_exception_is_one_short_line(error, reason):
    assert reason_of(error) == reason
