"""Values that a detector cannot be built with, through Detectron2's build_model."""

import math
from pathlib import Path

import clq
import pytest
import torch
from detectron2.modeling import build_model

CONFIG = Path(__file__).parents[2] / "configs/CLQ/clq_R_50_FPN_1x.yaml"
SMALL = [
    *("MODEL.WEIGHTS", "", "MODEL.CLQ.NUM_CLASSES", 2, "MODEL.FPN.OUT_CHANNELS", 32, "DATASETS.TRAIN", []),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.CLQ.CONV_DIM", 32, "MODEL.CLQ.NUM_CONVS", 1),
]


def build(*opts):
    with torch.device("meta"):  # without memory and time for weights
        return build_model(clq.setup_cfg(str(CONFIG), [*SMALL, "MODEL.DEVICE", "meta", *opts]))


@pytest.mark.parametrize(
    ("path", "value", "opts"),
    [
        ("MODEL.CLQ.ANCHOR_SCALE", 0.0, []),
        ("MODEL.CLQ.ANCHOR_OFFSET", 1.0, []),
        ("MODEL.CLQ.PRIOR_PROB", 1.0, []),
        ("MODEL.CLQ.TOPK", 0, []),
        ("MODEL.CLQ.BOX.WEIGHTS", [10.0, 10.0], []),
        ("MODEL.CLQ.BOX.WEIGHTS", [10.0, 10.0, 5.0, math.inf], []),
        ("MODEL.CLQ.BOX.REG_MAX", 0, []),
        ("MODEL.CLQ.BOX.LOSS_WEIGHT", math.inf, []),
        ("MODEL.CLQ.CLS.BETA", 0.5, []),
        ("MODEL.CLQ.QUALITY.ALPHA", 0.0, []),
        ("MODEL.CLQ.QUALITY.TOWER", "both", []),
        ("MODEL.CLQ.SCORE_THRESH", 1.0, []),
        ("MODEL.CLQ.NMS_THRESH", math.nan, []),
        ("MODEL.CLQ.IN_FEATURES", ["p3", "p9"], []),
        ("MODEL.CLQ.IN_FEATURES", [], []),
        ("MODEL.CLQ.ALIGN.OFFSET_GROUPS", 3, []),
        ("MODEL.CLQ.NORM", "XN", []),
        ("MODEL.CLQ.CONV_DIM", 48, []),
        ("MODEL.FPN.OUT_CHANNELS", 48, ["MODEL.CLQ.CONV", "depthwise", "MODEL.CLQ.ALIGN.NAME", "none"]),
        (
            "MODEL.FPN.OUT_CHANNELS",
            48,
            ["MODEL.CLQ.NUM_CONVS", 0, "MODEL.CLQ.REFINE.NAME", "star", "MODEL.CLQ.BOX.CODING", "distance"],
        ),
        ("MODEL.FPN.OUT_CHANNELS", 0, []),
        ("MODEL.CLQ.NUM_CONVS", 0, ["MODEL.CLQ.TOWERS", "interactive"]),
        ("SOLVER.ACCUMULATE", 0, []),
        ("TEST.DETECTIONS_PER_IMAGE", 0, []),
    ],
    ids=str,
)
def test_building_a_model_names_the_key_at_fault_first(path, value, opts):
    with pytest.raises(clq.UserError) as e:
        build(*opts, path, value)
    assert str(e.value).startswith(f"{path} {value}: ")


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.FPN.OUT_CHANNELS", 48],  # only the towers are normalized
        ["MODEL.CLQ.NUM_CONVS", 0, "MODEL.CLQ.CONV_DIM", 48],  # there are no towers
        ["MODEL.CLQ.NORM", "BN", "MODEL.CLQ.CONV_DIM", 48],
    ],
    ids=str,
)
def test_group_normalization_constrains_only_the_channels_that_it_divides(opts):
    build(*opts)
