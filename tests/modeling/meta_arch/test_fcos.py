"""Detectron2's FCOS, built from a yaml config."""

from pathlib import Path

import clq
import pytest
import torch
from clq.errors import UserError
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

CONFIG = Path(__file__).parents[3] / "configs/comparison/fcos_R_50_FPN_1x.yaml"
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.FPN.OUT_CHANNELS", 64, "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.NUM_CLASSES", 3),
]


def build(*opts):
    return build_model(clq.setup_cfg(str(CONFIG), [*SMALL, *opts]))


def test_pyramid_and_head_are_those_of_detectron2s_own_config():
    """P6 is made from P5, P7 through a ReLU; the head has GroupNorm and its own thresholds."""
    model = build()
    assert model.backbone.top_block.relu and model.backbone.top_block.in_feature == "p5"
    assert [type(m).__name__ for m in model.head.cls_subnet] == ["Conv2d", "GroupNorm", "ReLU"]
    assert model.head.cls_score.out_channels == model.num_classes == 3
    assert (model.test_score_thresh, model.test_nms_thresh, model.max_detections_per_image) == (0.2, 0.6, 100)
    assert (model.focal_loss_alpha, model.focal_loss_gamma, model.test_topk_candidates) == (0.25, 2.0, 1000)


def test_a_level_that_the_backbone_does_not_have_is_refused():
    with pytest.raises(UserError, match=r"MODEL\.RETINANET\.IN_FEATURES \['p3', 'p8'\]: name one or more"):
        build("MODEL.RETINANET.IN_FEATURES", ["p3", "p8"])


def test_an_image_without_objects_adds_its_negatives_only():
    """Detectron2's own FCOS fails for it. The class loss of a pair is that of the two images, normalized together."""
    torch.manual_seed(0)
    model = build()
    box, empty = Instances((96, 128)), Instances((96, 128))
    box.gt_boxes, box.gt_classes = Boxes(torch.tensor([[20.0, 10, 70, 60]])), torch.tensor([0])
    empty.gt_boxes, empty.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0, dtype=torch.int64)
    image = torch.rand(3, 96, 128) * 255
    labels, _ = model.label_anchors(
        model.anchor_generator([torch.zeros(1, 1, -(-96 // s), -(-128 // s)) for s in (8, 16, 32, 64, 128)]),
        [box, empty],
    )
    assert (labels[0] == 0).any() and (labels[1] == 3).all()
    with EventStorage():
        losses = model([{"image": image, "instances": x} for x in (box, empty)])
    assert all(x.isfinite() for x in losses.values())
