"""The text of a config in a checkpoint: values are read as Python would, and other statements are refused."""

import tracemalloc

import pytest
from clq.checkpoint.mmdet_config_text import dicts_in, read_config
from clq.errors import UserError
from mmdet_texts import config_text


def test_values_are_read_as_python_would():
    text = "x = 3\na = dict(b=[1, -2.5, (True, None)], **dict(c='d'))\ne = {'f g': x, **a}\nh = range(0, x)\ni = inf\n"
    config = read_config("a.pth", text + "model: dict = {}\nk = l = None\nm: int\n")
    assert str(config.pop("h")) == "range(0, x)"
    plain = {"b": [1, -2.5, [True, None]], "c": "d"}
    assert config == {
        "x": 3,
        "a": plain,
        "e": {"f g": 3, **plain},
        "i": float("inf"),
        "model": {},
        "k": None,
        "l": None,
    }


def test_docstrings_and_imports_are_skipped():
    text = "'A config.'\nimport os.path\nfrom a import b as c, d\nd = 1\nmodel = dict(x=c)\nfrom e import d\n"
    config = read_config("a.pth", text)
    assert (list(config), str(config["model"]["x"])) == (["model"], "c")  # the import gives d an unknown value


@pytest.mark.parametrize(
    "text, why",
    [
        ("/configs/gfl.py\n" + config_text("GFLHead"), "is not valid Python, line 1"),
        ("model = dict(type='GFL'", "is not valid Python, line 1"),
        ("model = dict(**{[1]: 2})", "is not valid Python"),
        ("x" * 3 + " = " + "[" * 5000 + "]" * 5000, "is not valid Python"),
        ("...", "has no model = dict"),
        ("model = build()", "has no model = dict"),
        ("_base_ = '../gfl.py'\nmodel = dict(bbox_head=dict(type='GFLHead'))", "has a _base_ that is not merged"),
    ],
)
def test_a_text_that_is_not_a_config_is_refused(text, why):
    with pytest.raises(UserError, match=f"a.pth: the config in its meta {why}.*; remove config .* from its meta"):
        read_config("a.pth", text)


# Statements that follow "model = dict(bbox_head=dict(type='GFLHead'))".
CHANGES = [
    "model['bbox_head']['anchor_generator'] = 0.5",
    "model.update(bbox_head=None)",
    "model |= dict(neck=None)",
    "model.bbox_head: int = 3",
    "del model['bbox_head']",
    "for model in []: pass",
    "if True: model = 3",
    "with open('x') as model: pass",
    "def model(): pass",
    "class model: pass",
    "a, model = 1, 2",
    "try: pass\nfinally: model = 3",
    "a = model.clear()",
    "a = [model.clear() for _ in range(2)]",
    "a = (model := 3)",
    "a = [0 for model['neck'] in [1]]",
    "a: model.clear() = 3",
    "a = lambda: 0\nb = a()",
    "a = globals().update(model=3)",
    "a = exec('model = 3')",
    "from a import *",
    "from a import b as dict",
    "inf = 5",
]


@pytest.mark.parametrize("statement", CHANGES)
def test_a_statement_that_could_change_a_value_is_refused(statement):
    with pytest.raises(UserError, match=r"^a.pth: the config in its meta .*\(line [23]: .*; remove config .*") as e:
        read_config("a.pth", f"model = dict(bbox_head=dict(type='GFLHead'))\n{statement}\n")
    assert "\n" not in str(e.value)


def test_a_group_with_unknown_content_is_unread():
    config = read_config("a.pth", "model = dict(neck=dict(**build(), num_outs=5), bbox_head={**other, 'x': 1})")
    assert {key: str(value) for key, value in config["model"].items()} == {
        "neck": "dict(**build(), num_outs=5)",
        "bbox_head": "{**other, 'x': 1}",
    }


def test_a_name_that_is_used_again_is_not_copied():
    text = "a = [" + "0, " * 10_000 + "]\n" + "b = [a, a, a, a]\n" + "model = dict(b=b)\n"
    config = read_config("a.pth", text)
    assert all(x is config["a"] for x in config["model"]["b"])


@pytest.mark.parametrize(
    "text, why",
    [
        (
            "\n".join(f"{b} = [{f'{a}, ' * 10}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)),
            "200,000 values",
        ),
        ("\n".join(["a = dict(x=a, y=a, z=a)"] * 12), "200,000 values"),
        ("a = [a]\n" * 101, "more than 100 deep"),
        ("a = " + "[" * 150 + "]" * 150, "more than 100 deep"),
        ("a = dict(x=a)\n" * 3000, "more than 100 deep"),
        ("a = '" + "x" * 1_000_000 + "'", "longer than 1,000,000 characters"),
        (f"a = {2**64}", "an integer of 65 bits"),
        ("a = 0x" + "f" * 5000, "an integer of 20000 bits"),
    ],
)
def test_a_text_that_would_take_much_memory_is_refused(text, why):
    tracemalloc.start()
    with pytest.raises(UserError, match=f"a.pth: the config in its meta .*{why}.*; remove config"):
        read_config("a.pth", f"a = 0\n{text}\nmodel = dict()\n")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_all_dicts_are_found_outer_ones_first():
    inner, outer = {"b": 2}, {"a": 1}
    outer["c"] = [3, [inner]]
    assert list(dicts_in([outer, "x"])) == [outer, inner]
