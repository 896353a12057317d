"""Names of MMDetection's weights: theirs -> ours."""

import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from clq.checkpoint.backbone_names import body_names, rename

logger = logging.getLogger(__name__)

_OFFSETS = "align.offsets.conv.weight"

# MMDetection's names in the heads of ATSS, GFL, GFLv2, VFNet, TOOD and CLQ and in the FPN -> ours. Scales are joined
# later.
_HEAD = (
    (r"(cls|reg)_convs\.(\d+)\.conv\.(\w+)", r"\1_tower.\2.\3"),
    (r"(cls|reg)_convs\.(\d+)\.gn\.(\w+)", r"\1_tower.\2.norm.\3"),
    (r"(?:atss|gfl|clq)_cls\.(\w+)", r"cls_logits.\1"),
    (r"(?:atss|gfl|clq)_reg\.(\w+)", r"box_pred.\1"),
    (r"(?:atss_centerness|retina_iou)\.(\w+)", r"quality_pred.\1"),
    (r"feature_alignment\.conv_offset\.weight", _OFFSETS),
    (r"feature_alignment\.conv_adaption\.weight", r"align.conv.weight"),
    (r"reg_conf\.(\d)\.(\w+)", r"quality_pred.\1.\2"),
    (r"vfnet_cls\.(\w+)", r"cls_logits.\1"),
    (r"vfnet_reg_conv\.conv\.(\w+)", r"box_pred.0.0.\1"),
    (r"vfnet_reg_conv\.gn\.(\w+)", r"box_pred.0.0.norm.\1"),
    (r"vfnet_reg\.(\w+)", r"box_pred.1.\1"),
    (r"vfnet_(cls|reg)(?:_refine)?_dconv\.weight", r"refine.\1_align.conv.weight"),
    (r"vfnet_reg_refine\.(\w+)", r"refine.box_pred.\1"),
    (r"inter_convs\.(\d+)\.conv\.(\w+)", r"shared.\1.\2"),
    (r"inter_convs\.(\d+)\.gn\.(\w+)", r"shared.\1.norm.\2"),
    (r"(cls|reg)_decomp\.layer_attention\.(\d)\.(\w+)", r"\1_tower.attention.\2.\3"),
    (r"(cls|reg)_decomp\.reduction_conv\.conv\.(\w+)", r"\1_tower.reduce.\2"),
    (r"(cls|reg)_decomp\.reduction_conv\.gn\.(\w+)", r"\1_tower.reduce.norm.\2"),
    (r"tood_cls\.(\w+)", r"cls_logits.\1"),
    (r"tood_reg\.(\w+)", r"box_pred.\1"),
    (r"cls_prob_module\.(\d)\.(\w+)", r"quality_pred.\1.\2"),
    (r"reg_offset_module\.(\d)\.(\w+)", r"refine.offsets.\1.\2"),
    (r"scales\.(\d+)\.scale", r"scales.\1"),
    (r"scales_refine\.(\d+)\.scale", r"refine.scales.\1"),
)
_NECK = (
    *((rf"lateral_convs\.{i}\.conv\.(\w+)", rf"fpn_lateral{i + 3}.\1") for i in range(3)),
    *((rf"fpn_convs\.{i}\.conv\.(\w+)", rf"fpn_output{i + 3}.\1") for i in range(3)),
    *((rf"fpn_convs\.{i}\.conv\.(\w+)", rf"top_block.p{i + 3}.\1") for i in (3, 4)),
)
_BACKBONE = "backbone."
_CONSTANTS = ("integral.project",)  # buffers that hold no weight


def convert_mmdet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of ATSS, GFL, GFLv2, VFNet, TOOD or CLQ in MMDetection under this project's names.

    Any width and number of classes; the class channels stay as they are, so those of GFLv2's and CLQ's authors keep one
    for the background.

    Args:
        state_dict: of a whole detector (``backbone.``, ``neck.``, ``bbox_head.``), which becomes that of a whole
            :class:`~clq.modeling.meta_arch.clq.CLQ`, or of the head alone, without a prefix, which becomes that of its
            head. A whole checkpoint, with its weights under ``state_dict``, does too.

    Returns:
        The converted weights. What has no place is left out and listed in a warning.
    """
    converted, unplaced = convert(state_dict.get("state_dict", state_dict))
    if unplaced:
        logger.warning("convert_mmdet: no place for %d weights: %s", len(unplaced), ", ".join(unplaced))
    return converted


def convert(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The converted weights, and the names of those that have no place."""
    body = [key[len(_BACKBONE) :] for key in state_dict if key.startswith(_BACKBONE)]
    names, unplaced = body_names(body)
    names, unplaced = {_BACKBONE + k: name for k, name in names.items()}, [_BACKBONE + k for k in unplaced]
    for key in state_dict:
        if key.startswith(_BACKBONE) or key.endswith((*_CONSTANTS, "num_batches_tracked")):
            continue
        if name := _our_name(key):
            names[key] = name
        else:
            unplaced.append(key)
    weights = {name: state_dict[key] for key, name in names.items()}
    for name in weights:
        if name.endswith(_OFFSETS) and weights[name].dim() == 4:
            weights[name] = _from_distances(weights[name])
    return _join_scales(weights), unplaced


def _from_distances(weight: Tensor) -> Tensor:
    """CLQ's offsets as a function of the box: its authors read (l, t, r, b), this project (x1, y1, x2, y2).

    These are (-l, -t, r, b), so what multiplies l and t changes its sign: (O, 4, 1, 1).
    """
    return torch.cat((-weight[:, :2], weight[:, 2:]), dim=1)


def _our_name(key: str) -> str | None:
    """Of a weight that is not the body's."""
    module, _, rest = key.partition(".")
    if module == "neck":
        name, prefix = rename(rest, _NECK), "backbone."
    elif module == "bbox_head":
        name, prefix = rename(rest, _HEAD), "head."
    else:
        name, prefix = rename(key, _HEAD), ""
    return name and prefix + name


def _join_scales(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """``...scales.0``, ``...scales.1``, ... (scalars) become the one parameter ``...scales`` (L,)."""
    joined: dict[str, Tensor] = {}
    scales: dict[str, dict[int, Tensor]] = {}
    for key, value in weights.items():
        if match := re.fullmatch(r"((?:.*\.)?scales)\.(\d+)", key):
            scales.setdefault(match[1], {})[int(match[2])] = value.reshape(())
        else:
            joined[key] = value
    return {**joined, **{name: torch.stack([levels[i] for i in sorted(levels)]) for name, levels in scales.items()}}
