"""Renames the weights of MMDetection's detectors to those of this project."""

import logging
import re
from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from clq.checkpoint.backbone_names import backbone_names, rename

logger = logging.getLogger(__name__)

_OFFSETS = "align.offsets.conv.weight"

# Patterns of MMDetection's names in the heads of ATSS, GFL, GFLv2, VFNet, TOOD and CLQ -> names of this project. The
# scales of the levels are joined later.
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
_FPN = (
    *((rf"lateral_convs\.{i}\.conv\.(\w+)", rf"fpn_lateral{i + 3}.\1") for i in range(3)),
    *((rf"fpn_convs\.{i}\.conv\.(\w+)", rf"fpn_output{i + 3}.\1") for i in range(3)),
    *((rf"fpn_convs\.{i}\.conv\.(\w+)", rf"top_block.p{i + 3}.\1") for i in (3, 4)),
)
_BACKBONE = "backbone."
_CONSTANTS = ("integral.project",)  # buffers that are not learned


def convert_mmdet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts weights of ATSS, GFL, GFLv2, VFNet, TOOD or CLQ from MMDetection to the names of this project.

    The detector may have any width and number of classes. The class channels are not changed, so those from the authors
    of GFLv2 and CLQ keep a channel for the background.

    Args:
        state_dict: weights of a whole detector, with the prefixes ``backbone.``, ``neck.`` and ``bbox_head.``; or of
            its head, without a prefix; or a whole checkpoint that has its weights under ``state_dict``.

    Returns:
        The weights of a whole :class:`~clq.modeling.meta_arch.clq.CLQ`, or of its head. Weights without a counterpart
        are left out and listed in a warning.
    """
    weights = cast(Mapping[str, Tensor], state_dict.get("state_dict", state_dict))
    converted, unplaced = convert(weights)
    if unplaced:
        logger.warning(
            "convert_mmdet: %d weights have no counterpart and are left out: %s", len(unplaced), ", ".join(unplaced)
        )
    return converted


class ConvertedWeights(NamedTuple):
    """Weights under the names of this project.

    Attributes:
        weights: converted weights, by name.
        unplaced: MMDetection's names of weights that have no counterpart.
    """

    weights: dict[str, Tensor]
    unplaced: list[str]


def convert(state_dict: Mapping[str, Tensor]) -> ConvertedWeights:
    """Converts weights from MMDetection, see :func:`convert_mmdet`."""
    backbone = backbone_names([key[len(_BACKBONE) :] for key in state_dict if key.startswith(_BACKBONE)])
    names = {_BACKBONE + key: name for key, name in backbone.names.items()}
    unplaced = [_BACKBONE + key for key in backbone.unknown]
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
    return ConvertedWeights(_join_scales(weights), unplaced)


def _from_distances(weight: Tensor) -> Tensor:
    """Converts CLQ's offset layer, a weight of (O, 4, 1, 1).

    The layer of its authors reads the distances (l, t, r, b). That of this project reads the box relative to its
    location, (x1, y1, x2, y2) = (-l, -t, r, b), so the weights of l and t change their signs.
    """
    return torch.cat((-weight[:, :2], weight[:, 2:]), dim=1)


def _our_name(key: str) -> str | None:
    """This project's name of a weight that is not in the backbone, or None."""
    module, _, rest = key.partition(".")
    if module == "neck":
        name, prefix = rename(rest, _FPN), "backbone."
    elif module == "bbox_head":
        name, prefix = rename(rest, _HEAD), "head."
    else:
        name, prefix = rename(key, _HEAD), ""
    return name and prefix + name


def _join_scales(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joins the scalars ``...scales.0``, ``...scales.1``, ... to one parameter ``...scales`` (L,)."""
    joined: dict[str, Tensor] = {}
    scales: dict[str, dict[int, Tensor]] = {}
    for key, value in weights.items():
        if match := re.fullmatch(r"((?:.*\.)?scales)\.(\d+)", key):
            scales.setdefault(match[1], {})[int(match[2])] = value.reshape(())
        else:
            joined[key] = value
    return {**joined, **{name: torch.stack([levels[i] for i in sorted(levels)]) for name, levels in scales.items()}}
