"""A batch whose losses are worked out by hand, and the losses of three variants.

Two images, four locations whose anchors are the quarters of a 16 x 16 square, two classes. There are two positives:
image 0, location 1, class 1, in a box twice as high: IoU 1/2, GIoU 1/2, centerness sqrt(4/4 * 4/12);
image 1, location 2, class 0, in a box 1.5 times as high: IoU 2/3, GIoU 2/3, centerness sqrt(4/4 * 4/8).
Location 3 of image 1 is padding.
"""

import math

import torch
from clq.modeling.box_coding import DeltaCoder, DistributionCoder
from clq.modeling.criterion import DetectionLoss, weigh_by_centerness, weigh_by_score
from clq.modeling.head.quality import CenternessQuality, IoUQuality
from clq.modeling.losses import focal_loss, quality_focal_loss
from clq.modeling.scoring import ScoreRule
from clq.modeling.structures import FlatPredictions, Targets
from torch import tensor

ANCHORS = tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]])
STRIDES = torch.full((4,), 8.0)
LN2 = math.log(2)
W = [3**-0.5, 2**-0.5]  # centerness of the two positives


def make_targets(num_pos=2.0, **changes):
    valid = torch.ones(2, 4, dtype=torch.bool)
    valid[1, 3] = False
    fields = {
        "image": tensor([0, 1]),
        "location": tensor([1, 2]),
        "is_positive": torch.ones(2) > 0,
        "gt_boxes": tensor([[8.0, 0, 16, 16], [0, 4, 8, 16]]),
        "gt_classes": tensor([1, 0]),
        "valid": valid,
        "num_pos": tensor(num_pos),
    }
    return Targets(**{**fields, **changes})


def no_objects():
    nothing = torch.zeros(0, dtype=torch.int64)
    return make_targets(
        2.0,
        image=nothing,
        location=nothing,
        is_positive=torch.zeros(0) > 0,
        gt_boxes=torch.zeros(0, 4),
        gt_classes=nothing,
    )


def make_predictions(channels=4, quality=True):
    """All predictions are zero: class score 1/2, quality 1/2, and the anchor as box."""
    shapes = [(2, 4, 2), (2, 4, channels), (2, 4, 1)]
    tensors = [torch.zeros(s, requires_grad=True) for s in shapes]
    return FlatPredictions(*(tensors if quality else [*tensors[:2], None]))


def atss():
    return DetectionLoss(
        ScoreRule(1.0, joint=False),
        DeltaCoder(),
        focal_loss,
        soft_target=False,
        quality_target=CenternessQuality().target,
        box_weight=weigh_by_centerness,
        box_weight_floor=1.0,
        box_loss_weight=2.0,
    )


def clq(**changes):
    """CLQ with deltas in place of distributions, because their values are easier to work out."""
    settings = {"quality_target": IoUQuality(0.3).target, "box_weight": weigh_by_score, "box_loss_weight": 2.0}
    settings.update(changes)
    return DetectionLoss(ScoreRule(0.3, joint=True), DeltaCoder(), quality_focal_loss, soft_target=True, **settings)


def gfl(floor=1.0):
    weights = {"box_weight": weigh_by_score, "box_weight_floor": floor, "box_loss_weight": 2.0}
    return DetectionLoss(ScoreRule(), DistributionCoder(7), quality_focal_loss, soft_target=True, **weights)
