"""Shared by the properties: damaged content for the readers of files, and what a reader may do with it.

A property of a reader has the mark ``fuzz``. The suite tries it with a few fixed examples. ``make fuzz`` repeats it
with new examples for FUZZ_MINUTES minutes. Those that failed are kept in ``.hypothesis`` and tried first the next time.
"""

import contextlib
import copy
import math
import os
from collections import Counter
from pathlib import Path

import hypothesis
from clq.errors import UserError
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

MINUTES = float(os.environ.get("FUZZ_MINUTES") or 0)
OUTCOMES = Counter()  # of the examples of the property that runs: accepted, refused
REPORT = []  # a line for each property that is finished

_COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}
hypothesis.settings.register_profile("suite", max_examples=40, derandomize=True, database=None, **_COMMON)
hypothesis.settings.register_profile(
    "fuzz",
    max_examples=100,
    database=DirectoryBasedExampleDatabase(Path(__file__).parents[1] / ".hypothesis/examples"),
    print_blob=True,
    **_COMMON,
)
hypothesis.settings.load_profile("fuzz" if MINUTES else "suite")


def few_examples(test):
    """For properties of which an example takes long: the suite tries only a few."""
    return test if MINUTES else hypothesis.settings(max_examples=12)(test)


@contextlib.contextmanager
def accepting_or_refusing():
    """A reader accepts what it reads in this block, or refuses it in one line; every other exception is a failure."""
    try:
        yield
    except UserError as e:
        OUTCOMES["refused"] += 1
        assert str(e).strip() and len(str(e).splitlines()) == 1, f"not one line: {e!r}"
    else:
        OUTCOMES["accepted"] += 1


def _a_span(draw, data):
    start = draw(st.integers(0, len(data)))
    return start, min(len(data), start + draw(st.integers(1, 16)))


@st.composite
def damaged_bytes(draw, originals):
    """Bytes of one of the files with up to six changed, removed, repeated, inserted or missing parts."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(["bit", "byte", "byte", "remove", "repeat", "insert", "cut", "length"]))
        start, end = _a_span(draw, data)
        if kind == "bit" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and start < len(data):
            data[start] = draw(st.integers(0, 255))
        elif kind == "remove":
            del data[start:end]
        elif kind == "repeat":
            data[start:start] = data[start:end] * draw(st.sampled_from([1, 2, 50]))
        elif kind == "insert":
            data[start:start] = draw(st.binary(max_size=8))
        elif kind == "length":  # four bytes that some format takes for a size
            data[start : start + 4] = draw(
                st.sampled_from([b"\xff" * 4, b"\0\0\0\x7f", b"\x7f\xff\xff\xff", b"\0" * 4])
            )
        elif kind == "cut" and draw(st.booleans()):
            del data[start:]
    return bytes(data)


@st.composite
def damaged_text(draw, originals, words):
    """One of the texts with up to five changes: other words, removed, repeated or swapped lines, odd characters."""
    text = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(0, 5))):
        lines = text.split("\n")
        at = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["word", "word", "word", "remove", "repeat", "swap", "character", "indent", "cut"]))
        if kind == "word":
            start = draw(st.integers(0, len(lines[at])))
            end = min(len(lines[at]), start + draw(st.integers(0, 12)))
            lines[at] = lines[at][:start] + draw(words) + lines[at][end:]
        elif kind == "remove":
            del lines[at]
        elif kind == "repeat":
            lines.insert(at, lines[at])
        elif kind == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == "character":
            lines[at] += draw(st.characters())
        elif kind == "indent":
            lines[at] = " " * draw(st.integers(1, 4)) + lines[at]
        elif kind == "cut" and draw(st.booleans()):
            del lines[at:]
        text = "\n".join(lines)
    return text


ODD_VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, math.inf, -math.inf, math.nan]
    ),
    st.sampled_from(["", "1", "nan", "a\nb", "../x", "/", "\0", "\ud800", "ü" * 300, "x" * 5000]),
    st.sampled_from([[], {}, [[]], [None], [[1, 2], [3]], {"": {}}, [0, 0, 0, 0], [1e308] * 4, [math.nan] * 4]),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
)


def _places(node, path=()):
    """Paths to all values in nested dicts and lists."""
    for key, value in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from _places(value, (*path, key))


def _parent(tree, path):
    for key in path[:-1]:
        tree = tree[key]
    return tree


@st.composite
def damaged_tree(draw, original, values=ODD_VALUES):
    """Nested dicts and lists with up to four changed, removed, repeated, renamed or moved values."""
    tree = copy.deepcopy(original)
    for _ in range(draw(st.integers(0, 4))):
        places = list(_places(tree))
        if not places:
            break
        path = draw(st.sampled_from(places))
        parent, key = _parent(tree, path), path[-1]
        kind = draw(st.sampled_from(["value", "value", "value", "remove", "repeat", "rename", "copy", "wrap"]))
        if kind == "value":
            parent[key] = copy.deepcopy(draw(values))  # the next change may be inside of it
        elif kind == "remove":
            del parent[key]
        elif kind == "repeat" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif kind == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from([*parent, "", "x", "ID"]))] = parent.pop(key)
        elif kind == "copy":
            other = draw(st.sampled_from(places))
            parent[key] = copy.deepcopy(_parent(tree, other)[other[-1]])
        elif kind == "wrap":
            parent[key] = [parent[key]]
    return tree
