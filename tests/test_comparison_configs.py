"""The configs of Detectron2's own detectors, which the variants are compared with, and their training."""

import json
from pathlib import Path

import clq
import pytest
import torch
from clq.engine.config_checks import check_model
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

ROOT = Path(__file__).parents[1] / "configs/comparison"
# Family: its meta-architecture, its group with NUM_CLASSES, learning rate, losses.
RCNN = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
FAMILIES = {
    "retinanet": ("RetinaNet", "RETINANET", 0.01, {"loss_cls", "loss_box_reg"}),
    "fcos": ("FCOS", "RETINANET", 0.01, {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}),
    "faster_rcnn": ("GeneralizedRCNN", "ROI_HEADS", 0.02, RCNN),
    "mask_rcnn": ("GeneralizedRCNN", "ROI_HEADS", 0.02, {*RCNN, "loss_mask"}),
    "cascade_rcnn": (
        *("GeneralizedRCNN", "ROI_HEADS", 0.02),
        {"loss_rpn_cls", "loss_rpn_loc", *(f"loss_{x}_stage{i}" for x in ("cls", "box_reg") for i in range(3))},
    ),
}
BACKBONES = {
    "R_50_FPN_1x": (50, 1, 64),
    "R_50_FPN_2x_ms": (50, 1, 64),
    "R_101_FPN_2x_ms": (101, 1, 64),
    "X_101_64x4d_FPN_2x_ms": (101, 64, 4),
}
WEIGHTS = {
    "R_50_FPN_1x": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
    "R_50_FPN_2x_ms": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
    "R_101_FPN_2x_ms": "torchvision://resnet101",
    "X_101_64x4d_FPN_2x_ms": "torchvision://resnext101_64x4d",
}
SHRINK = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.RESNETS.NUM_GROUPS", 1, "MODEL.RESNETS.WIDTH_PER_GROUP", 64, "MODEL.FPN.OUT_CHANNELS", 64),
    *("MODEL.RETINANET.NUM_CONVS", 1, "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32),
]


def config(name, *opts):
    return clq.setup_cfg(str(ROOT / f"{name}.yaml"), ["MODEL.DEVICE", "cpu", *opts])


def test_every_config_is_checked():
    assert {p.stem for p in ROOT.glob("*.yaml")} == {
        f"{family}_{backbone}" for family in FAMILIES for backbone in BACKBONES
    }


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("family", FAMILIES)
def test_builds_with_the_input_the_backbone_and_the_schedule_of_atss(family, backbone):
    cfg, architecture, group, rate = config(f"{family}_{backbone}"), *FAMILIES[family][:3]
    ours = clq.setup_cfg(str(ROOT.parent / f"ATSS/atss_{backbone}.yaml"), ["MODEL.DEVICE", "cpu"])
    assert (cfg.INPUT, cfg.DATASETS, cfg.TEST) == (ours.INPUT, ours.DATASETS, ours.TEST)
    cfg.SOLVER.BASE_LR, given = ours.SOLVER.BASE_LR, cfg.SOLVER.BASE_LR
    assert cfg.SOLVER == ours.SOLVER and given == rate
    assert (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == (ours.MODEL.PIXEL_MEAN, ours.MODEL.PIXEL_STD)
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 2 and cfg.MODEL.WEIGHTS == ours.MODEL.WEIGHTS == WEIGHTS[backbone]
    cfg.MODEL.RESNETS.OUT_FEATURES = ours.MODEL.RESNETS.OUT_FEATURES
    assert cfg.MODEL.RESNETS == ours.MODEL.RESNETS
    r = cfg.MODEL.RESNETS
    assert BACKBONES[backbone] == (r.DEPTH, r.NUM_GROUPS, r.WIDTH_PER_GROUP)
    assert architecture == cfg.MODEL.META_ARCHITECTURE and cfg.MODEL[group].NUM_CLASSES == -1
    check_model(cfg)
    build_model(config(f"{family}_{backbone}", *SHRINK, f"MODEL.{group}.NUM_CLASSES", 2))


def test_retinanets_anchors():
    """Three sizes per octave, starting at 4 strides."""
    sizes = config("retinanet_R_50_FPN_1x").MODEL.ANCHOR_GENERATOR.SIZES
    expected = [[4 * stride * 2 ** (i / 3) for i in range(3)] for stride in (8, 16, 32, 64, 128)]
    torch.testing.assert_close(torch.tensor(sizes), torch.tensor(expected))


def sample(*boxes):
    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    instances.gt_masks = PolygonMasks([[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes])
    return {"image": torch.rand(3, 96, 128) * 255, "instances": instances}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step(family):
    torch.manual_seed(0)
    group, losses = FAMILIES[family][1], FAMILIES[family][3]
    model = build_model(config(f"{family}_R_50_FPN_1x", *SHRINK, f"MODEL.{group}.NUM_CLASSES", 2))
    with EventStorage():
        found = model([sample((20, 10, 70, 60)), sample()])
    assert found.keys() == losses
    assert all(x.isfinite() for x in found.values())
    sum(found.values()).backward()
    without_gradient = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not without_gradient


@pytest.fixture(scope="module")
def with_masks(tiny, tmp_path_factory):
    """``DATASETS`` of the generated pictures, each rectangle with its outline as segmentation."""
    entries = []
    for entry in clq.setup_cfg(tiny).DATASETS.COCO_JSON:
        content = json.loads(Path(entry["json"]).read_text())
        for a in content["annotations"]:
            x, y, w, h = a["bbox"]
            a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        path = tmp_path_factory.mktemp("masks") / Path(entry["json"]).name
        path.write_text(json.dumps(content))
        entries.append({"name": "masked_" + entry["name"], "json": str(path), "images": entry["images"]})
    train, val = entries
    return ["DATASETS.COCO_JSON", entries, "DATASETS.TRAIN", [train["name"]], "DATASETS.TEST", [val["name"]]]


@pytest.mark.parametrize("family", FAMILIES)
def test_train_net_trains_and_evaluates(family, with_masks, tmp_path, run):
    """The number of classes comes from the data set, and evaluating the checkpoint gives the same results again."""
    small = ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", [], "DATALOADER.NUM_WORKERS", 0]
    small += ["INPUT.MIN_SIZE_TRAIN", [96], "INPUT.MIN_SIZE_TEST", 96]
    argv = ["--config-file", ROOT / f"{family}_R_50_FPN_1x.yaml", "OUTPUT_DIR", tmp_path, *SHRINK, *small, *with_masks]
    assert run("train_net.py", *argv) == 0
    written = [json.loads(line).keys() for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert set().union(*written) >= {"bbox/AP", *FAMILIES[family][3]}
    group = FAMILIES[family][1]
    assert clq.setup_cfg(str(tmp_path / "config.yaml")).MODEL[group].NUM_CLASSES == 2

    results = tmp_path / "inference/masked_shapes_val/coco_instances_results.json"
    found = results.read_text()
    results.unlink()
    weights = ["MODEL.WEIGHTS", tmp_path / "model_final.pth"]
    assert run("train_net.py", "--eval-only", *argv, *weights) == 0
    assert results.read_text() == found


def test_numbers_of_classes_that_disagree(tiny, tmp_path, run, capsys):
    sets = ["DATASETS.COCO_JSON", clq.setup_cfg(tiny).DATASETS.COCO_JSON, "DATASETS.TRAIN", ["shapes_train"]]
    for family, key in (("fcos", "MODEL.RETINANET.NUM_CLASSES"), ("cascade_rcnn", "MODEL.ROI_HEADS.NUM_CLASSES")):
        argv = ["--config-file", ROOT / f"{family}_R_50_FPN_1x.yaml", "OUTPUT_DIR", tmp_path, *sets, key, 80]
        assert run("train_net.py", *argv, "DATASETS.TEST", []) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{key} is 80 but data set shapes_train has 2 classes; set it to -1 or 2" in line


def test_masks_that_the_data_set_lacks(tiny, tmp_path, run, capsys):
    sets = ["DATASETS.COCO_JSON", clq.setup_cfg(tiny).DATASETS.COCO_JSON, "DATASETS.TRAIN", ["shapes_train"]]
    opts = ["DATALOADER.NUM_WORKERS", 0, "DATASETS.TEST", [], "OUTPUT_DIR", tmp_path, *SHRINK]
    assert run("train_net.py", "--config-file", ROOT / "mask_rcnn_R_50_FPN_1x.yaml", *sets, *opts) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data set shapes_train: annotation 1 has segmentation null; MODEL.MASK_ON needs" in line
