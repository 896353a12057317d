from pathlib import Path

import clq
import pytest
import torch
import torchvision
import yaml
from clq.checkpoint.torchvision_weights import torchvision_to_detectron2
from detectron2.modeling import build_backbone, build_model

ROOT = Path(__file__).parents[1] / "configs"
NAMES = sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob("*.yaml"))
SHRINK = [
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NUM_GROUPS", 1),
    *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.CLQ.CONV_DIM", 32, "MODEL.CLQ.NUM_CLASSES", 2, "DATASETS.TRAIN", []),
]
# Deformable bodies and Res2Nets are bottlenecks of at least 50 layers: narrow ones.
NARROW = [
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.NUM_GROUPS", 4, "MODEL.RESNETS.WIDTH_PER_GROUP", 1),
]
# The variants, by hand: class loss, weight of GIoU, what weighs it, the floor of the sum of these weights, quality, its
# exponent where it is used, alignment.
_ATSS = ("focal", 2.0, "centerness", 1.0, "centerness", None, "none")
_CLQ = ("qfl", 2.0, "score", 0.0, "iou", 0.3, "learned")
_CLQ_WO_ALIGN = ("qfl", 2.0, "score", 0.0, "iou", 0.3, "none")
_GFL = ("qfl", 2.0, "score", 1.0, "none", None, "none")
_GFLV2 = ("qfl", 2.0, "score", 0.0, "dgqp", None, "none")
_NANODET = ("qfl", 2.0, "score", 0.0, "none", None, "none")
_TOOD = ("qfl", 2.0, "alignment", 0.0, "task", None, "none")
_VFNET = ("vfl", 2.0, "iou", 1.0, "none", None, "none")
ROWS = {
    "ATSS/atss_R_50_FPN_1x": _ATSS,
    "ATSS/atss_R_50_FPN_2x_ms": _ATSS,
    "CLQ/clq_R_50_FPN_1x": _CLQ,
    "CLQ/clq_R_50_FPN_2x_ms": _CLQ,
    "CLQ/clq_R_101_FPN_2x_ms": _CLQ,
    "CLQ/clq_X_101_64x4d_FPN_2x_ms": _CLQ,
    "ablations/clq_wo_lqe_R_50_FPN_1x": ("qfl", 2.0, "score", 0.0, "none", None, "none"),
    "ablations/clq_wo_align_R_50_FPN_1x": _CLQ_WO_ALIGN,
    "ablations/clq_geometric_align_R_50_FPN_1x": ("qfl", 2.0, "score", 0.0, "iou", 0.3, "geometric"),
    "ablations/atss_qfl_R_50_FPN_1x": ("qfl", 2.0, "none", 1.0, "none", None, "none"),
    "ablations/atss_lqe_R_50_FPN_1x": ("qfl", 2.0, "none", 1.0, "iou", 0.3, "none"),
    "ablations/atss_clq_R_50_FPN_1x": ("qfl", 2.0, "none", 1.0, "iou", 0.3, "learned"),
    "VFNET/vfnet_R_50_FPN_1x": _VFNET,
    "VFNET/vfnet_R_50_FPN_2x_ms": _VFNET,
    "CLQ/clq_lite_320": _CLQ_WO_ALIGN,
    "CLQ/clq_lite_416": _CLQ_WO_ALIGN,
    "NANODET/nanodet_m_320": _NANODET,
    "NANODET/nanodet_m_416": _NANODET,
    "TOOD/tood_R_50_FPN_1x": _TOOD,
    "TOOD/tood_R_50_FPN_2x_ms": _TOOD,
    "GFL/gfl_R_50_FPN_1x": _GFL,
    "GFL/gfl_R_50_FPN_2x_ms": _GFL,
    "GFLV2/gflv2_R_50_FPN_1x": _GFLV2,
    "GFLV2/gflv2_R_50_FPN_2x_ms": _GFLV2,
    "GFLV2/gflv2_R_101_DCN_FPN_2x_ms": _GFLV2,
    "GFLV2/gflv2_X_101_32x4d_DCN_FPN_2x_ms": _GFLV2,
    "GFLV2/gflv2_R2_101_DCN_FPN_2x_ms": _GFLV2,
}
LARGER = {"R_101": {"MODEL.WEIGHTS", "MODEL.RESNETS.DEPTH"}}
LARGER["X_101_64x4d"] = {*LARGER["R_101"], "MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP"}
# Each with the cells of its ResNet-50, and nothing else changed but the body.
LARGER_ROWS = [
    (f"{row}_R_50_FPN_2x_ms", f"{row}_{body}_FPN_2x_ms", keys)
    for row in ("ATSS/atss", "GFL/gfl", "VFNET/vfnet", "TOOD/tood", "GFLV2/gflv2")
    for body, keys in LARGER.items()
]
ROWS |= {larger: ROWS[row] for row, larger, _ in LARGER_ROWS}
CODINGS = {"ATSS": "delta", "VFNET": "distance", "TOOD": "ltrb"}
CODINGS |= dict.fromkeys(("ablations/atss_qfl", "ablations/atss_lqe", "ablations/atss_clq"), "delta")
# Of the authors' repositories that follow MMDetection 2's GFLv2, or NanoDet, the top-k counts locations.
LOCATIONS = "CLQ/", "NANODET/", "ablations/clq"
# For the checkpoints of MMDetection: the variant, for COCO's classes, without weights to start from.
MMDET = [f"{name}_R_50_FPN_1x" for name in ("ATSS/atss", "GFL/gfl", "GFLV2/gflv2", "VFNET/vfnet", "TOOD/tood")]
MMDET.append("CLQ/clq_R_101_FPN_2x_ms")  # the only one that its authors' config is for
ATSS, CLQ = "ATSS/atss_R_50_FPN_1x", "CLQ/clq_R_50_FPN_1x"
MULTI_SCALE = {"INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "SOLVER.STEPS", "SOLVER.MAX_ITER"}
SIZE = {"INPUT.LETTERBOX.SIZE", "INPUT.AUG.SCALE"}
SIZE |= {f"INPUT.{side}_SIZE_{split}" for side in ("MIN", "MAX") for split in ("TRAIN", "TEST")}
# Neighbours of the ablation tables and the only keys in which they may differ.
STEPS = [
    (ATSS, "ablations/atss_qfl_R_50_FPN_1x", {"CLS.LOSS", "BOX.WEIGHT_BY", "QUALITY.NAME"}),
    ("ablations/atss_qfl_R_50_FPN_1x", "ablations/atss_lqe_R_50_FPN_1x", {"QUALITY.NAME"}),
    ("ablations/atss_lqe_R_50_FPN_1x", "ablations/atss_clq_R_50_FPN_1x", {"ALIGN.NAME"}),
    ("ablations/atss_clq_R_50_FPN_1x", CLQ, {"BOX.CODING", "BOX.WEIGHT_BY", "BOX.WEIGHT_FLOOR", "TOPK_COUNTS"}),
    ("ablations/clq_wo_lqe_R_50_FPN_1x", "GFL/gfl_R_50_FPN_1x", {"BOX.WEIGHT_FLOOR", "TOPK_COUNTS"}),
    ("ablations/clq_wo_lqe_R_50_FPN_1x", "ablations/clq_wo_align_R_50_FPN_1x", {"QUALITY.NAME"}),
    ("ablations/atss_qfl_R_50_FPN_1x", "GFL/gfl_R_50_FPN_1x", {"BOX.CODING", "BOX.WEIGHT_BY"}),
    ("GFL/gfl_R_50_FPN_1x", "GFLV2/gflv2_R_50_FPN_1x", {"QUALITY.NAME", "BOX.WEIGHT_FLOOR"}),
    ("NANODET/nanodet_m_320", "CLQ/clq_lite_320", {"QUALITY.NAME"}),
    ("ablations/clq_wo_align_R_50_FPN_1x", CLQ, {"ALIGN.NAME"}),
    ("ablations/clq_geometric_align_R_50_FPN_1x", CLQ, {"ALIGN.NAME", "ALIGN.GRADIENT"}),
]


def load(name, *opts):
    return clq.setup_cfg(str(ROOT / name), ["MODEL.DEVICE", "cpu", *opts])


def flat(node, prefix=""):
    keys = {}
    for name, value in node.items():
        keys.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return keys


def differing(one, other):
    a, b = flat(load(one + ".yaml")), flat(load(other + ".yaml"))
    return {key for key in a.keys() | b.keys() if a[key] != b[key]}


def scalars(value):
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from scalars(item)
    else:
        yield value


@pytest.mark.parametrize("name", NAMES)
def test_only_plain_yaml(name):
    text = (ROOT / name).read_text()
    assert not any(token.id == "<tag>" for token in yaml.scan(text))
    for value in scalars(yaml.safe_load(text)):
        assert isinstance(value, (str, int, float))
        # Detectron2 evaluates "(800,)" and the like; a plain list needs no evaluation.
        assert not str(value).startswith(("(", "[", "{", "eval"))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("comparison/")])
def test_builds_with_random_weights(name):
    cfg = load(name, *SHRINK, *(NARROW if "_DCN_" in name else []))
    model = build_model(cfg)
    c = cfg.MODEL.CLQ
    for head in model.head.heads if c.HEAD_PER_LEVEL else [model.head]:
        assert (head.quality_pred is None) == (c.QUALITY.NAME == "none")
        assert (head.align is None) == (c.ALIGN.NAME == "none")
    assert model.strides == [2 ** int(level[1:]) for level in c.IN_FEATURES]


def test_base_has_the_designs_numbers():
    cfg = load("Base-Dense-R50-FPN.yaml")
    assert cfg.MODEL.META_ARCHITECTURE == "CLQ"
    assert cfg.MODEL.WEIGHTS == "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
    assert list(cfg.MODEL.PIXEL_MEAN) == [123.675, 116.28, 103.53]
    assert list(cfg.MODEL.PIXEL_STD) == [58.395, 57.12, 57.375]
    assert cfg.INPUT.FORMAT == "RGB"
    r = cfg.MODEL.RESNETS
    assert (r.DEPTH, r.NORM, r.STRIDE_IN_1X1, cfg.MODEL.BACKBONE.FREEZE_AT) == (50, "FrozenBN", False, 2)
    assert cfg.MODEL.FPN.OUT_CHANNELS == 256
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("coco_2017_train",), ("coco_2017_val",))
    i = cfg.INPUT
    assert (i.MIN_SIZE_TRAIN, i.MAX_SIZE_TRAIN, i.MIN_SIZE_TEST, i.MAX_SIZE_TEST) == ((800,), 1333, 800, 1333)
    assert i.RANDOM_FLIP == "horizontal"
    s = cfg.SOLVER
    assert (s.IMS_PER_BATCH, s.BASE_LR, s.MOMENTUM, s.WEIGHT_DECAY) == (16, 0.01, 0.9, 1e-4)
    assert s.WEIGHT_DECAY_NORM == s.WEIGHT_DECAY
    assert (s.STEPS, s.MAX_ITER, s.GAMMA) == ((60000, 80000), 90000, 0.1)
    assert (s.WARMUP_METHOD, s.WARMUP_ITERS, s.WARMUP_FACTOR) == ("linear", 500, 0.001)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100


def test_defaults_have_the_designs_numbers():
    c = load("Base-Dense-R50-FPN.yaml").MODEL.CLQ
    assert (c.NUM_CLASSES, c.ANCHOR_SCALE, c.ANCHOR_OFFSET, c.TOPK) == (-1, 8.0, 0.0, 9)
    assert (c.NUM_CONVS, c.CONV_DIM, c.NORM, c.PRIOR_PROB) == (4, 256, "GN", 0.01)
    assert (c.SCORE_THRESH, c.TOPK_CANDIDATES, c.NMS_THRESH) == (0.05, 1000, 0.6)
    assert (c.CLS.BETA, c.CLS.FOCAL_ALPHA, c.CLS.FOCAL_GAMMA) == (2.0, 0.25, 2.0)


@pytest.mark.parametrize("name", ROWS)
def test_row(name):
    cfg = load(name + ".yaml")
    c = cfg.MODEL.CLQ
    loss, weight, weight_by, floor, quality, alpha, align = ROWS[name]
    assert (loss, weight, weight_by, floor) == (c.CLS.LOSS, c.BOX.LOSS_WEIGHT, c.BOX.WEIGHT_BY, c.BOX.WEIGHT_FLOOR)
    assert (quality, align) == (c.QUALITY.NAME, c.ALIGN.NAME)
    assert c.QUALITY.LOSS_WEIGHT == 1.0
    assert c.QUALITY.TOWER == "cls"
    assert (4, 0.0 if align == "geometric" else 1.0) == (c.ALIGN.OFFSET_GROUPS, c.ALIGN.GRADIENT)
    assert CODINGS.get(name.split("/")[0], CODINGS.get(name.split("_R_50")[0], "distribution")) == c.BOX.CODING
    assert ("locations" if name.startswith(LOCATIONS) else "pairs") == c.TOPK_COUNTS
    assert (7 if c.CONV == "depthwise" else 16, 0.25) == (c.BOX.REG_MAX, c.BOX.DFL_WEIGHT)
    assert alpha is None or alpha == c.QUALITY.ALPHA
    assert ((5.0, 0.5) if c.CONV == "depthwise" else (8.0, 0.0)) == (c.ANCHOR_SCALE, c.ANCHOR_OFFSET)
    assert (0.1 if "vfnet" in name or c.CONV == "depthwise" else 0.001) == cfg.SOLVER.WARMUP_FACTOR
    if name.endswith("2x_ms"):
        assert (cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == ((120000, 160000), 180000)
        largest = 960 if any(n in name for n in ("gflv2", "vfnet", "clq")) else 800
        assert (480, largest) == cfg.INPUT.MIN_SIZE_TRAIN
        assert cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"


def test_deformable_stages_are_those_of_gflv2s_authors():
    stages = {
        name.removeprefix("GFLV2/gflv2_"): load(name + ".yaml").MODEL.RESNETS.DEFORM_ON_PER_STAGE
        for name in ROWS
        if any(load(name + ".yaml").MODEL.RESNETS.DEFORM_ON_PER_STAGE)
    }
    assert stages == {
        "R_101_DCN_FPN_2x_ms": [False, True, True, True],
        "X_101_32x4d_DCN_FPN_2x_ms": [False, True, True, True],
        "R2_101_DCN_FPN_2x_ms": [False, False, True, True],
    }


def test_every_row_is_checked():
    kept_elsewhere = {n for n in NAMES if n.startswith(("sample/", "comparison/"))} | {"Base-Dense-R50-FPN.yaml"}
    assert set(NAMES) - kept_elsewhere == {f"{name}.yaml" for name in [*ROWS, *map(of_mmdet, MMDET)]}


def of_mmdet(row):
    return row.replace("/", "/mmdet_")


@pytest.mark.parametrize("row", MMDET)
def test_the_config_of_a_checkpoint_is_its_rows(row):
    assert differing(row, of_mmdet(row)) == {"MODEL.WEIGHTS", "MODEL.CLQ.NUM_CLASSES"}
    cfg = load(of_mmdet(row) + ".yaml")
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.CLQ.NUM_CLASSES) == ("", 80)
    assert ("vfnet" in row) == cfg.MODEL.CLQ.RELU_BEFORE_P7


@pytest.mark.parametrize("one, other, keys", STEPS)
def test_an_ablation_changes_nothing_else(one, other, keys):
    assert differing(one, other) == {f"MODEL.CLQ.{key}" for key in keys}


@pytest.mark.parametrize(
    "one, other, keys",
    [
        (ATSS, "ATSS/atss_R_50_FPN_2x_ms", MULTI_SCALE),
        (CLQ, "CLQ/clq_R_50_FPN_2x_ms", MULTI_SCALE),
        ("VFNET/vfnet_R_50_FPN_1x", "VFNET/vfnet_R_50_FPN_2x_ms", MULTI_SCALE),
        ("NANODET/nanodet_m_320", "NANODET/nanodet_m_416", SIZE),
        ("CLQ/clq_lite_320", "CLQ/clq_lite_416", SIZE),
        ("TOOD/tood_R_50_FPN_1x", "TOOD/tood_R_50_FPN_2x_ms", {*MULTI_SCALE, "MODEL.CLQ.ASSIGN.WARMUP"}),
        ("GFL/gfl_R_50_FPN_1x", "GFL/gfl_R_50_FPN_2x_ms", MULTI_SCALE),
        ("GFLV2/gflv2_R_50_FPN_1x", "GFLV2/gflv2_R_50_FPN_2x_ms", MULTI_SCALE),
        *LARGER_ROWS,
        ("CLQ/clq_R_50_FPN_2x_ms", "CLQ/clq_R_101_FPN_2x_ms", {"MODEL.WEIGHTS", "MODEL.RESNETS.DEPTH"}),
        (
            "CLQ/clq_R_101_FPN_2x_ms",
            "CLQ/clq_X_101_64x4d_FPN_2x_ms",
            {"MODEL.WEIGHTS", "MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP"},
        ),
        (
            "GFLV2/gflv2_R_101_FPN_2x_ms",
            "GFLV2/gflv2_R_101_DCN_FPN_2x_ms",
            {"MODEL.RESNETS.DEFORM_ON_PER_STAGE", "MODEL.RESNETS.DEFORM_MODULATED"},
        ),
        (
            "GFLV2/gflv2_R_101_DCN_FPN_2x_ms",
            "GFLV2/gflv2_X_101_32x4d_DCN_FPN_2x_ms",
            {"MODEL.WEIGHTS", "MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP"},
        ),
        (
            "GFLV2/gflv2_R_101_DCN_FPN_2x_ms",
            "GFLV2/gflv2_R2_101_DCN_FPN_2x_ms",
            {
                *("MODEL.WEIGHTS", "MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP"),
                *("MODEL.BACKBONE.NAME", "MODEL.RESNETS.DEFORM_ON_PER_STAGE"),
            },
        ),
    ],
)
def test_a_longer_or_larger_one_changes_nothing_else(one, other, keys):
    assert differing(one, other) == keys


@pytest.mark.parametrize(
    "name, body",
    [
        ("Base-Dense-R50-FPN", "resnet50"),
        ("CLQ/clq_R_101_FPN_2x_ms", "resnet101"),
        ("CLQ/clq_X_101_64x4d_FPN_2x_ms", "resnext101_64x4d"),
    ],
)
def test_body_is_the_one_of_its_weights(name, body):
    """Weight for weight and shape for shape torchvision's model of that name (on the meta device: no memory)."""
    cfg = load(name + ".yaml")
    assert cfg.MODEL.WEIGHTS.startswith("detectron2://") or f"torchvision://{body}" == cfg.MODEL.WEIGHTS
    with torch.device("meta"):
        ours = build_backbone(cfg).bottom_up.state_dict()
        theirs = torchvision_to_detectron2(getattr(torchvision.models, body)(weights=None).state_dict())
    prefix = "backbone.bottom_up."
    assert {prefix + k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
