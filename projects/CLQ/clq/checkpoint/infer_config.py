"""Infers config keys from the weights of a detector."""

import re
from collections.abc import Mapping

from torch import Tensor

from clq.checkpoint.backbone_names import BOTTOM_UP
from clq.errors import UserError

# (number of blocks in res4, whether they are bottlenecks) -> depth of the ResNet
_DEPTHS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101, (36, True): 152}


def backbone_keys(path: str, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """Infers the keys of the backbone.

    Args:
        path: path of the checkpoint, for error messages.
        weights: weights of a whole detector under this project's names.

    Raises:
        KeyError: a weight is missing.
        UserError: Detectron2 does not have this backbone.
    """
    shapes = {key[len(BOTTOM_UP) :]: value.shape for key, value in weights.items() if key.startswith(BOTTOM_UP)}
    bottleneck, res2net = "res2.0.conv3.weight" in shapes, "res2.0.conv2.0.weight" in shapes
    num_blocks = len({key.split(".")[1] for key in shapes if key.startswith("res4.")})
    if (num_blocks, bottleneck) not in _DEPTHS:
        raise UserError(
            f"{path}: its backbone has {num_blocks} blocks in layer3, as no ResNet of Detectron2 has; give a detector "
            f"with a backbone of {', '.join(map(str, sorted(_DEPTHS.values())))} layers."
        )
    suffix = ".0" if res2net else ""  # a block of a Res2Net has several 3x3 convolutions, which are alike
    offsets = [shapes.get(f"res{i}.0.conv2_offset{suffix}.bias", (0,))[0] for i in (2, 3, 4, 5)]
    if not set(offsets) <= {0, 18, 27}:  # (dy, dx), or (dy, dx, weight), for 9 taps
        raise UserError(
            f"{path}: has deformable convolutions with several groups of offsets, which are not supported; give a "
            "detector with one group."
        )
    width = shapes[f"res2.0.conv2{suffix}.weight"][1]
    return {
        "MODEL.BACKBONE.NAME": f"build_dense_{'res2net' if res2net else 'resnet'}_fpn_backbone",
        "MODEL.RESNETS.DEPTH": _DEPTHS[num_blocks, bottleneck],
        "MODEL.RESNETS.NUM_GROUPS": shapes["res2.0.conv1.weight"][0] // width,
        "MODEL.RESNETS.WIDTH_PER_GROUP": width,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": shapes["res2.0.conv1.weight"][1],
        "MODEL.RESNETS.RES2_OUT_CHANNELS": shapes[f"res2.0.conv{3 if bottleneck else 2}.weight"][0],
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [channels > 0 for channels in offsets],
        "MODEL.RESNETS.DEFORM_MODULATED": 27 in offsets,
    }


def head_keys(weights: Mapping[str, Tensor], *, distributions: bool) -> dict[str, object]:
    """Infers the keys of the FPN and the head.

    Args:
        weights: weights of a whole detector under this project's names.
        distributions: whether the detector predicts boxes as distributions.

    Raises:
        KeyError: a weight is missing.
    """
    sizes: dict[str, object] = {
        "MODEL.FPN.OUT_CHANNELS": len(weights["backbone.fpn_lateral3.weight"]),
        "MODEL.CLQ.NUM_CLASSES": len(weights["head.cls_logits.weight"]),
        "MODEL.CLQ.CONV_DIM": weights["head.cls_logits.weight"].shape[1],
        "MODEL.CLQ.NUM_CONVS": sum(bool(re.fullmatch(r"head\.(cls_tower|shared)\.\d+\.weight", k)) for k in weights),
    }
    if distributions:
        sizes["MODEL.CLQ.BOX.REG_MAX"] = len(weights["head.box_pred.weight"]) // 4 - 1
    if (offsets := weights.get("head.align.offsets.conv.weight")) is not None:
        sizes["MODEL.CLQ.ALIGN.OFFSET_GROUPS"] = len(offsets) // 18  # (dy, dx) for 9 taps
    return sizes
