"""Damaged configs of MMDetection: they are read or refused in one line, and nothing in them is executed."""

import ast
import shutil

import hypothesis
import pytest
from clq.checkpoint.mmdet_config import check_settings, head_of
from clq.checkpoint.mmdet_config_text import dicts_in, read_config
from clq.checkpoint.mmdet_test_settings import selection_keys
from fuzzing import ODD_VALUES, accepting_or_refusing, damaged_text, damaged_tree
from hypothesis import strategies as st
from mmdet_texts import HEADS, OURS, config_text, our_config

TEXTS = {(kind, version): config_text(kind, 7, version) for kind in HEADS for version in ("2.x", "3.x")}
CALLS = "__import__('os').mkdir(RAN)", "exec('import os; os.mkdir(RAN)')", "[x for x in ().__class__.__mro__]"
WORDS = st.sampled_from(
    [
        *("dict(", ")", "[", "]", "{", "}", "(", "'", '"', "=", ",", ":", "None", "True", "1e999", "-1", "inf", "nan"),
        *("model", "model.update(", "_base_", "**model", "lambda: 0", "if 1: ", "import os", "x := 1", "*", "...", "#"),
        *("9" * 5000, "[" * 300, "-" * 300, "\\", "\0", "\t", "\r", "\N{NO-BREAK SPACE}", "\ud800"),
    ]
) | st.text(max_size=4)


def read(kind, text):
    """Reads a text as the converter does, with all the checks that follow."""
    with accepting_or_refusing():
        config = read_config("a.pth", text)
        list(dicts_in(config))
        if head_of(config).kind == kind:
            check_settings("a.pth", config, our_config(kind), OURS[kind])
        selection_keys("a.pth", config)


@pytest.mark.fuzz
@hypothesis.given(data=st.data(), key=st.sampled_from(list(TEXTS)))
def test_a_damaged_text(tmp_path_factory, data, key):
    ran = tmp_path_factory.getbasetemp() / "ran"
    calls = st.sampled_from(CALLS).map(lambda call: call.replace("RAN", repr(str(ran))))
    read(key[0], data.draw(damaged_text([TEXTS[key]], WORDS | calls)))
    if ran.exists():
        shutil.rmtree(ran)
        raise AssertionError("the config has run")


def literal(value):
    """A value as MMDetection writes it."""
    if isinstance(value, dict):
        return f"dict({', '.join(f'{k}={literal(v)}' for k, v in value.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    return repr(value)


@pytest.mark.fuzz
@hypothesis.given(data=st.data(), key=st.sampled_from(list(TEXTS)))
def test_odd_values_in_a_config(data, key):
    config = {k: v for k, v in read_config("a.pth", TEXTS[key]).items() if isinstance(v, (dict, list))}
    tree = data.draw(damaged_tree(config, ODD_VALUES.filter(lambda value: value != {"": {}})))
    text = "\n".join(f"{name} = {literal(value)}" for name, value in tree.items())
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):  # renamed to something that is no name
        hypothesis.reject()
    read(key[0], text)
