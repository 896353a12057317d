"""Detectron2's FCOS, built from a yaml config for comparisons; Detectron2 itself has no yaml config for it."""

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch import fcos
from detectron2.structures import Boxes, Instances
from torch import nn

from clq.errors import blamed_on
from clq.modeling.build import pyramid_shapes


def _with_an_empty_box(instances: Instances) -> Instances:
    box, label = instances.gt_boxes.tensor.new_zeros(1, 4), instances.gt_classes.new_zeros(1)
    return Instances(instances.image_size, gt_boxes=Boxes(box), gt_classes=label)


def _group_norm(channels: int) -> nn.GroupNorm:
    # Detectron2's head tries its norm on a single channel, which torch's group norm with 32 groups refuses.
    return nn.GroupNorm(min(32, channels), channels)


@META_ARCH_REGISTRY.register()
class FCOS(fcos.FCOS):
    """Detectron2's FCOS, with the same arguments, built from the keys of ``MODEL.RETINANET``."""

    @configurable
    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list, list]:
        """Labels as Detectron2 does, which fails for an image without objects: it gets a box that matches nothing."""
        return super().label_anchors(anchors, [x if len(x) else _with_an_empty_box(x) for x in gt_instances])

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """The arguments of Detectron2's ``configs/common/models/fcos.py``, with the pyramid of the config.

        Raises:
            UserError: Detectron2 refuses a value, or the backbone does not have a level.
        """
        c = cfg.MODEL.RETINANET
        with blamed_on("MODEL.BACKBONE, RESNETS and FPN"):
            backbone = build_backbone(cfg)
        shapes = pyramid_shapes(backbone, c.IN_FEATURES, "MODEL.RETINANET.IN_FEATURES")
        with blamed_on("MODEL.RETINANET and FPN.OUT_CHANNELS"):
            head = fcos.FCOSHead(
                input_shape=shapes,
                num_classes=c.NUM_CLASSES,
                conv_dims=[shapes[0].channels] * c.NUM_CONVS,
                norm=_group_norm if c.NORM == "GN" else c.NORM,
                prior_prob=c.PRIOR_PROB,
            )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": c.IN_FEATURES,
            "num_classes": c.NUM_CLASSES,
            "focal_loss_alpha": c.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": c.FOCAL_LOSS_GAMMA,
            "test_score_thresh": c.SCORE_THRESH_TEST,
            "test_topk_candidates": c.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": c.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }
