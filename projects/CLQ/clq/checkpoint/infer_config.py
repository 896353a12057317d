"""What the weights of a detector tell of its config."""

import re
from collections.abc import Mapping

from torch import Tensor

from clq.checkpoint.backbone_names import BODY
from clq.errors import UserError

# (blocks in res4, whether they are bottlenecks) -> depth
_DEPTHS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101, (36, True): 152}


def body_keys(path: str, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """The keys of the body.

    Args:
        path: of the file, for errors.
        weights: of a whole detector.

    Raises:
        UserError: no body that Detectron2 builds.
    """
    shapes = {key[len(BODY) :]: value.shape for key, value in weights.items() if key.startswith(BODY)}
    bottleneck, res2net = "res2.0.conv3.weight" in shapes, "res2.0.conv2.0.weight" in shapes
    num_blocks = len({key.split(".")[1] for key in shapes if key.startswith("res4.")})
    if (num_blocks, bottleneck) not in _DEPTHS:
        raise UserError(
            f"{path}: its backbone, with {num_blocks} blocks in layer3, is of no depth that Detectron2 has; give "
            f"one of {', '.join(map(str, sorted(_DEPTHS.values())))} layers."
        )
    of_chain = ".0" if res2net else ""  # a Res2Net's 3x3 convolutions are several, and alike
    offsets = [shapes.get(f"res{i}.0.conv2_offset{of_chain}.bias", (0,))[0] for i in (2, 3, 4, 5)]
    if not set(offsets) <= {0, 18, 27}:  # (dy, dx), or these and a weight, of 9 taps
        raise UserError(
            f"{path}: has deformable convolutions in several groups, which are not told apart here; give one with one "
            "group."
        )
    width = shapes[f"res2.0.conv2{of_chain}.weight"][1]
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


def head_keys(weights: Mapping[str, Tensor], of_distributions: bool) -> dict[str, object]:
    """The keys of neck and head.

    Args:
        weights: of a whole detector.
        of_distributions: whether it predicts boxes as distributions.
    """
    sizes = {
        "MODEL.FPN.OUT_CHANNELS": len(weights["backbone.fpn_lateral3.weight"]),
        "MODEL.CLQ.NUM_CLASSES": len(weights["head.cls_logits.weight"]),
        "MODEL.CLQ.CONV_DIM": weights["head.cls_logits.weight"].shape[1],
        "MODEL.CLQ.NUM_CONVS": sum(bool(re.fullmatch(r"head\.(cls_tower|shared)\.\d+\.weight", k)) for k in weights),
    }
    if of_distributions:
        sizes["MODEL.CLQ.BOX.REG_MAX"] = len(weights["head.box_pred.weight"]) // 4 - 1
    if (offsets := weights.get("head.align.offsets.conv.weight")) is not None:
        sizes["MODEL.CLQ.ALIGN.OFFSET_GROUPS"] = len(offsets) // 18  # (dy, dx) of 9 taps
    return sizes
