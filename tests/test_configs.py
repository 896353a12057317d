from pathlib import Path

import clq
import pytest
import torch
import torchvision
import yaml
from clq.checkpoint.torchvision_weights import torchvision_to_detectron2
from clq.engine.config_checks import check_model, check_training
from clq.engine.schedule import resolve_epochs
from detectron2.modeling import build_backbone, build_model

ROOT = Path(__file__).parents[1] / "configs"
NAMES = sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob("*.yaml"))
SHRINK = [
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NUM_GROUPS", 1),
    *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.CLQ.CONV_DIM", 32, "MODEL.CLQ.NUM_CLASSES", 2, "DATASETS.TRAIN", []),
]
# Deformable backbones and Res2Nets have bottlenecks and at least 50 layers; these are narrow.
NARROW = [
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.NUM_GROUPS", 4, "MODEL.RESNETS.WIDTH_PER_GROUP", 1),
]
LARGER = {"R_101": {"MODEL.WEIGHTS", "MODEL.RESNETS.DEPTH"}}
LARGER["X_101_64x4d"] = {*LARGER["R_101"], "MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP"}
# A 2x config with a larger backbone, beside the ResNet-50 one, and the only keys in which they differ.
LARGER_BACKBONES = [
    (f"{variant}_R_50_FPN_2x_ms", f"{variant}_{backbone}_FPN_2x_ms", keys)
    for variant in ("ATSS/atss", "GFL/gfl", "VFNET/vfnet", "TOOD/tood", "GFLV2/gflv2")
    for backbone, keys in LARGER.items()
]
# Configs for MMDetection's checkpoints, which differ from these in the number of classes and in having no weights.
MMDET = [f"{name}_R_50_FPN_1x" for name in ("ATSS/atss", "GFL/gfl", "GFLV2/gflv2", "VFNET/vfnet", "TOOD/tood")]
MMDET.append("CLQ/clq_R_101_FPN_2x_ms")  # the only one that its authors' config is for
ATSS, CLQ = "ATSS/atss_R_50_FPN_1x", "CLQ/clq_R_50_FPN_1x"
MULTI_SCALE = {"INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "SOLVER.STEPS", "SOLVER.MAX_ITER"}
SIZE = {"INPUT.LETTERBOX.SIZE", "INPUT.AUG.SCALE"}
SIZE |= {f"INPUT.{side}_SIZE_{split}" for side in ("MIN", "MAX") for split in ("TRAIN", "TEST")}
# Pairs of variants and the only keys under MODEL.CLQ in which they differ.
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


def of_mmdet(variant):
    return variant.replace("/", "/mmdet_")


@pytest.mark.parametrize("variant", MMDET)
def test_the_config_of_a_checkpoint_differs_in_classes_and_weights_only(variant):
    assert differing(variant, of_mmdet(variant)) == {"MODEL.WEIGHTS", "MODEL.CLQ.NUM_CLASSES"}


@pytest.mark.parametrize("one, other, keys", STEPS)
def test_variants_differ_in_their_own_parts_only(one, other, keys):
    assert differing(one, other) == {f"MODEL.CLQ.{key}" for key in keys}


# What the configs for small data sets change: length, batch, schedule, evaluation, the average, sizes and colours.
FINETUNING = {
    *(f"SOLVER.{key}" for key in ("EPOCHS", "IMS_PER_BATCH", "LR_SCHEDULER_NAME", "WARMUP_ITERS", "PATIENCE")),
    *("SOLVER.CHECKPOINT_EPOCHS", "SOLVER.CHECKPOINTS_KEPT", "SOLVER.EMA.ENABLED", "SOLVER.EMA.DECAY"),
    *("TEST.EVAL_EPOCHS", "TEST.BEST_METRIC", "DATALOADER.NUM_WORKERS"),
}
FINETUNED = [name for name in NAMES if name.startswith("finetune/")]
SCHEDULES_AND_BACKBONES = [
    (
        CLQ,
        "finetune/clq_R_50_FPN",
        {*FINETUNING, "INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "INPUT.AUG.COLOR"},
    ),
    (
        "finetune/clq_R_50_FPN",
        "finetune/clq_R_18_FPN",
        {
            *("MODEL.WEIGHTS", "MODEL.RESNETS.DEPTH", "MODEL.RESNETS.RES2_OUT_CHANNELS"),
            *(f"INPUT.{side}_SIZE_{split}" for side in ("MIN", "MAX") for split in ("TRAIN", "TEST")),
        },
    ),
    ("CLQ/clq_lite_320", "finetune/clq_lite_320", {*FINETUNING, "INPUT.AUG.MIN_VISIBLE"}),
    (ATSS, "ATSS/atss_R_50_FPN_2x_ms", MULTI_SCALE),
    (CLQ, "CLQ/clq_R_50_FPN_2x_ms", MULTI_SCALE),
    ("VFNET/vfnet_R_50_FPN_1x", "VFNET/vfnet_R_50_FPN_2x_ms", MULTI_SCALE),
    ("NANODET/nanodet_m_320", "NANODET/nanodet_m_416", SIZE),
    ("CLQ/clq_lite_320", "CLQ/clq_lite_416", SIZE),
    ("TOOD/tood_R_50_FPN_1x", "TOOD/tood_R_50_FPN_2x_ms", {*MULTI_SCALE, "MODEL.CLQ.ASSIGN.WARMUP"}),
    ("GFL/gfl_R_50_FPN_1x", "GFL/gfl_R_50_FPN_2x_ms", MULTI_SCALE),
    ("GFLV2/gflv2_R_50_FPN_1x", "GFLV2/gflv2_R_50_FPN_2x_ms", MULTI_SCALE),
    *LARGER_BACKBONES,
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
]


@pytest.mark.parametrize("one, other, keys", SCHEDULES_AND_BACKBONES)
def test_a_longer_schedule_or_a_larger_backbone_changes_nothing_else(one, other, keys):
    assert differing(one, other) == keys


def test_every_config_is_compared_with_another():
    compared = {name for one, other, _ in [*STEPS, *SCHEDULES_AND_BACKBONES] for name in (one, other)}
    compared |= {of_mmdet(variant) for variant in MMDET}
    elsewhere = {name for name in NAMES if name.startswith(("sample/", "comparison/"))} | {"Base-Dense-R50-FPN.yaml"}
    assert {f"{name}.yaml" for name in compared} == set(NAMES) - elsewhere


@pytest.mark.parametrize("name", FINETUNED)
def test_a_config_for_small_data_sets_trains_on_them(name, tiny):
    """Its keys fit together, and its length follows from the 16 images of the training set."""
    datasets = load(tiny).DATASETS
    cfg = load(name, *(x for key in ("COCO_JSON", "TRAIN", "TEST") for x in (f"DATASETS.{key}", datasets[key])))
    check_model(cfg)
    check_training(cfg)
    resolve_epochs(cfg)
    iterations = -(-16 // cfg.SOLVER.IMS_PER_BATCH)
    assert cfg.SOLVER.EPOCHS * iterations == cfg.SOLVER.MAX_ITER
    assert cfg.TEST.EVAL_EPOCHS * iterations == cfg.TEST.EVAL_PERIOD
    assert cfg.SOLVER.PATIENCE * cfg.TEST.EVAL_EPOCHS < cfg.SOLVER.EPOCHS / 2  # it can end early
    assert cfg.SOLVER.EPOCHS % cfg.TEST.EVAL_EPOCHS == 0


@pytest.mark.parametrize(
    "name, backbone",
    [
        ("finetune/clq_R_18_FPN", "resnet18"),
        ("Base-Dense-R50-FPN", "resnet50"),
        ("CLQ/clq_R_101_FPN_2x_ms", "resnet101"),
        ("CLQ/clq_X_101_64x4d_FPN_2x_ms", "resnext101_64x4d"),
    ],
)
def test_the_backbone_is_that_of_its_weights(name, backbone):
    """Weight for weight and shape for shape torchvision's model of that name (on the meta device: no memory)."""
    cfg = load(name + ".yaml")
    assert cfg.MODEL.WEIGHTS.startswith("detectron2://") or f"torchvision://{backbone}" == cfg.MODEL.WEIGHTS
    with torch.device("meta"):
        ours = build_backbone(cfg).bottom_up.state_dict()
        theirs = torchvision_to_detectron2(getattr(torchvision.models, backbone)(weights=None).state_dict())
    prefix = "backbone.bottom_up."
    assert {prefix + k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
