"""The table of keys against the config that it makes, the checks that read it, and the builders that it describes."""

import ast
import math
from pathlib import Path

import clq
import pytest
import torch
from clq.config import KEYS, check_keys
from clq.config.key import Names, Number, Numbers, OneOf
from clq.data.augmentations import build_augmentations
from clq.engine.config_checks import check_model, check_training
from clq.modeling import build
from clq.modeling.backbone import shufflenet_pan
from clq.modeling.head.feature_alignment import BACKENDS
from detectron2.config import get_cfg
from detectron2.layers import get_norm
from detectron2.modeling import build_model

ROOT = Path(__file__).parents[2]
KEYS_HERE = {path: key for path, key in KEYS.items() if key.exists()}
CHOICES = {path: list(key.values.meanings) for path, key in KEYS.items() if isinstance(key.values, OneOf)}
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.CLQ.NUM_CLASSES", 2, "MODEL.FPN.OUT_CHANNELS", 32),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.CLQ.CONV_DIM", 32, "MODEL.CLQ.NUM_CONVS", 1),
]
SHUFFLENET = [
    *("MODEL.BACKBONE.NAME", "build_shufflenet_pan_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.FPN.IN_FEATURES", ["stage2", "stage3", "stage4"], "MODEL.CLQ.IN_FEATURES", ["p3", "p4", "p5"]),
]
# Of detectron2.layers.get_norm, which has no list of its names.
NORMS = "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"
# What a choice needs of other keys.
COMPANIONS = {
    "star": ["MODEL.CLQ.BOX.CODING", "distance"],
    "sampling": ["MODEL.CLQ.BOX.CODING", "ltrb"],
    "alignment_metric": ["MODEL.CLQ.ASSIGN.NAME", "task"],
}


def config(*opts):
    return clq.setup_cfg(str(ROOT / "configs/CLQ/clq_R_50_FPN_1x.yaml"), [*SMALL, *opts])


def build_on_meta(cfg):
    """Detectron2's build_model, without memory and time for weights."""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def leaves(node, prefix=""):
    keys = {}
    for name, value in node.items():
        keys.update(leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return keys


def test_a_config_has_the_keys_of_the_table_and_no_others():
    cfg = get_cfg()
    before = leaves(cfg)
    clq.add_clq_config(cfg)
    added = {path: value for path, value in leaves(cfg).items() if path not in before}
    # Detectron2 main has some of these keys in its own defaults.
    assert added == {path: key.default for path, key in KEYS_HERE.items() if path not in before}
    assert KEYS_HERE.keys() <= leaves(cfg).keys()


def test_configs_do_not_share_their_lists():
    first, second = get_cfg(), get_cfg()
    clq.add_clq_config(first)
    first.INPUT.AUG.CROP.append(1)
    clq.add_clq_config(second)
    assert second.INPUT.AUG.CROP == []


def test_every_key_accepts_its_default_and_has_one_definition_that_grep_finds():
    sources = "".join(source.read_text() for source in (ROOT / "projects/CLQ/clq/config").glob("*_keys.py"))
    for path, key in KEYS.items():
        key.check(key.default)
        assert sources.count(f'"{path}"') == 1


def wrong_values(key):
    """Values of all sorts that a key must refuse, of its type where yacs checks that."""
    wrong = [None]
    if isinstance(key.default, float):
        wrong += [math.nan, math.inf, -math.inf]
    if isinstance(key.values, Number):
        low, high = key.values.minimum, key.values.maximum
        beyond = [low if low is None else low - 1, high if high is None else high + 1]
        outside = [x for x in (*beyond, key.values.above, key.values.below) if x is not None]
        wrong += [type(key.default)(x) for x in outside if x not in key.values.also]
    if isinstance(key.values, OneOf):
        wrong.append("no_such_name")
    if isinstance(key.values, Numbers):
        size = len(key.values.names)
        wrong += [[1] * (size + 1), [-1] * size, [math.nan] * size, [math.inf] * size, ["a"] * size]
        wrong += [[2.5] * size] * key.values.integers + [[2, 1]] * key.values.ascending
    if isinstance(key.values, Names):
        wrong += [[3], ["a", "a"]] + [[]] * (not key.values.may_be_empty)
    return wrong


def use(*opts):
    """All that a script does with a config before it trains."""
    cfg = config(*opts)
    check_model(cfg)
    check_training(cfg)
    build_augmentations(cfg)
    build_on_meta(cfg)


@pytest.mark.parametrize(
    ("path", "value"),
    [(path, value) for path, key in KEYS_HERE.items() for value in wrong_values(key)],
    ids=str,
)
def test_the_key_at_fault_is_named(path, value):
    with pytest.raises(clq.UserError) as e:
        use(path, value, *(SHUFFLENET if path.startswith("MODEL.SHUFFLENET") else []))
    assert str(e.value).startswith(f"{path} {value}: ")
    assert "\n" not in str(e.value)


def test_only_the_keys_asked_for_are_checked():
    cfg = config()
    cfg.MODEL.CLQ.TOPK_CANDIDATES = 0
    check_keys(cfg, "MODEL.CLQ.TOPK", "MODEL.CLQ.BOX", "SOLVER")
    for prefix in ("MODEL", "MODEL.CLQ", "MODEL.CLQ.TOPK_CANDIDATES"):
        with pytest.raises(clq.UserError, match=r"MODEL\.CLQ\.TOPK_CANDIDATES 0: must be at least 1"):
            check_keys(cfg, prefix)


@pytest.mark.parametrize(
    ("path", "choice"),
    [(path, choice) for path, choices in CHOICES.items() for choice in choices if path.startswith("MODEL.")],
)
def test_every_choice_builds(path, choice):
    opts = SHUFFLENET if path.startswith("MODEL.SHUFFLENET") else []
    build_on_meta(config(*opts, *COMPANIONS.get(choice, []), path, choice))


def test_the_builders_know_no_other_choices(monkeypatch):
    built, choose = {}, build._choose

    def record(key, name, **makers):
        built[f"MODEL.CLQ.{key}"] = set(makers)
        return choose(key, name, **makers)

    monkeypatch.setattr(build, "_choose", record)
    build_on_meta(config())
    built["MODEL.CLQ.ALIGN.BACKEND"] = {"auto", *BACKENDS}
    built["MODEL.CLQ.QUALITY.TOWER"] = {"cls", "reg"}
    built["MODEL.SHUFFLENET.NAME"] = set(shufflenet_pan.SHUFFLENETS)
    built["MODEL.SHUFFLENET.NORM"] = set(shufflenet_pan._NORMS)
    built["MODEL.SHUFFLENET.ACTIVATION"] = set(shufflenet_pan._ACTIVATIONS)
    built["MODEL.CLQ.NORM"] = {name for name in (*NORMS, "") if (get_norm(name, 32) is None) == (name == "")}
    assert built == {path: set(choices) for path, choices in CHOICES.items() if path.startswith("MODEL.")}


def test_the_config_imports_nothing_of_the_packages_above_it():
    for source in (ROOT / "projects/CLQ/clq/config").glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [x.name for x in getattr(node, "names", [])]
            own = [name for name in names if isinstance(node, (ast.Import, ast.ImportFrom)) and name.startswith("clq")]
            assert all(name.startswith(("clq.config", "clq.errors", "clq.utils")) for name in own), source
