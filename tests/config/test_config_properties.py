"""Damaged configs and overrides: a config or one line, nothing else, and nothing in them is executed."""

import logging
import shutil
from pathlib import Path

import clq
import hypothesis
import pytest
import yaml
from clq.engine.config_checks import check_model, check_training
from fuzzing import ODD_VALUES, accepting_or_refusing, damaged_text, damaged_tree
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2] / "configs"
PATHS = [ROOT / name for name in ("sample/clq_sample.yaml", "CLQ/clq_R_50_FPN_1x.yaml", "Base-Dense-R50-FPN.yaml")]
TEXTS = [path.read_text().replace('"../', f'"{ROOT}/') for path in PATHS]
TREES = [yaml.safe_load(text) for text in TEXTS]
WORDS = st.sampled_from(
    [
        *(
            ": ",
            "- ",
            "[",
            "]",
            "{",
            "}",
            "'",
            '"',
            "&a ",
            "*a",
            "<<: ",
            "!!python/tuple ",
            "!!binary ",
            "!x ",
            "|",
            ">",
        ),
        *(
            "null",
            "~",
            "yes",
            ".inf",
            ".nan",
            "1e999",
            "0x10",
            "1:30",
            "2020-01-01",
            "---\n",
            "...\n",
            "# ",
            "%",
            "@",
            "?",
        ),
        *("_BASE_: ", "MODEL: ", "CLQ", "KEY", "-1", "9" * 5000, "\t", "\0", "\x85", "\ud800", "[" * 50),
    ]
) | st.text(max_size=4)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("configs") / "a.yaml"


def load(path, content, opts=()):
    """Reads a config as train_net.py does, up to its data sets; nothing may have executed."""
    path.write_bytes(content)
    with accepting_or_refusing():
        cfg = clq.setup_cfg(str(path), ["MODEL.DEVICE", "cpu", *opts])
        check_model(cfg)
        check_training(cfg)
    if (path.parent / "ran").exists():
        shutil.rmtree(path.parent / "ran")
        raise AssertionError("the config has run")


@pytest.mark.fuzz
@hypothesis.given(data=st.data())
def test_a_damaged_yaml(path, data):
    calls = [
        f"!!python/object/apply:os.mkdir ['{path.parent}/ran']",
        f"!!python/object/new:os.mkdir ['{path.parent}/ran']",
    ]
    text = data.draw(damaged_text(TEXTS, WORDS | st.sampled_from(calls)))
    load(path, text.encode("utf-8", "surrogatepass"))


@pytest.mark.fuzz
@hypothesis.given(data=st.data(), number=st.sampled_from(range(len(TEXTS))))
def test_odd_values_in_a_yaml(path, data, number):
    text = yaml.safe_dump(data.draw(damaged_tree(TREES[number])), allow_unicode=False)
    load(path, text.encode("utf-8", "surrogatepass"))


def keys(node, prefix=""):
    for name, value in node.items():
        yield from keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]


KEYS = sorted(keys(clq.setup_cfg(None, ["MODEL.DEVICE", "cpu"])))


@pytest.mark.fuzz
@hypothesis.given(data=st.data())
def test_odd_overrides(path, data):
    pair = st.tuples(st.sampled_from(KEYS) | st.text(max_size=5), ODD_VALUES.map(str) | ODD_VALUES | WORDS)
    opts = [word for pair in data.draw(st.lists(pair, min_size=1, max_size=3)) for word in pair]
    load(path, TEXTS[0].encode(), opts)


@pytest.fixture(autouse=True)
def quiet():
    """Warnings of the values that Detectron2 replaces would fill the report of ``make fuzz``."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
