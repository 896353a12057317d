"""Weights of other code bases under this project's names."""

import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from clq.engine.checkpoint import torchvision_to_detectron2
from clq.errors import UserError

logger = logging.getLogger(__name__)

# MMDetection's names in the heads of ATSS, GFL and GFLv2 and in the FPN -> ours. Scales are joined afterwards.
_HEAD = (
    (r"(cls|reg)_convs\.(\d+)\.conv\.(\w+)", r"\1_tower.\2.\3"),
    (r"(cls|reg)_convs\.(\d+)\.gn\.(\w+)", r"\1_tower.\2.norm.\3"),
    (r"(?:atss|gfl)_cls\.(\w+)", r"cls_logits.\1"),
    (r"(?:atss|gfl)_reg\.(\w+)", r"box_pred.\1"),
    (r"atss_centerness\.(\w+)", r"quality_pred.\1"),
    (r"reg_conf\.(\d)\.(\w+)", r"quality_pred.\1.\2"),
    (r"scales\.(\d+)\.scale", r"scales.\1"),
)
_NECK = (
    *((rf"lateral_convs\.{i}\.conv\.(\w+)", rf"fpn_lateral{i + 3}.\1") for i in range(3)),
    *((rf"fpn_convs\.{i}\.conv\.(\w+)", rf"fpn_output{i + 3}.\1") for i in range(3)),
    *((rf"fpn_convs\.{i}\.conv\.(\w+)", rf"top_block.p{i + 3}.\1") for i in (3, 4)),
)
_CONSTANTS = ("integral.project",)  # buffers that hold no weight


def convert_mmdet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MMDetection's ATSS, GFL or GFLv2 weights under this project's names, whatever their width and number of classes.

    Args:
        state_dict: of a whole detector (``backbone.``, ``neck.``, ``bbox_head.``), which becomes that of a whole
            :class:`~clq.modeling.detector.CLQ`, or of the head alone, without a prefix, which becomes that of its head.
            A whole checkpoint, with its weights under ``state_dict``, does too.

    Returns:
        The converted weights. What has no place is left out and listed in a warning.
    """
    state_dict = state_dict.get("state_dict", state_dict)
    converted, unplaced = {}, []
    for key, value in state_dict.items():
        name = _our_name(key)
        if name:
            converted[name] = value
        elif not key.endswith((*_CONSTANTS, "num_batches_tracked")):
            unplaced.append(key)
    if unplaced:
        logger.warning("convert_mmdet: no place for %d weights: %s", len(unplaced), ", ".join(unplaced))
    return _join_scales(converted)


def _our_name(key: str) -> str | None:
    module, _, rest = key.partition(".")
    if module == "backbone":
        try:
            return next(iter(torchvision_to_detectron2({rest: None})), None)
        except UserError:
            return None
    if module == "neck":
        return _rename(rest, _NECK, "backbone.")
    if module == "bbox_head":
        return _rename(rest, _HEAD, "head.")
    return _rename(key, _HEAD, "")


def _rename(key: str, table: tuple[tuple[str, str], ...], prefix: str) -> str | None:
    for pattern, name in table:
        if re.fullmatch(pattern, key):
            return prefix + re.sub(pattern, name, key)
    return None


def _join_scales(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """``...scales.0``, ``...scales.1``, ... (scalars) become the one parameter ``...scales`` (L,)."""
    scales = {k: v for k, v in weights.items() if re.search(r"(^|\.)scales\.\d+$", k)}
    joined = {k: v for k, v in weights.items() if k not in scales}
    if scales:
        by_level = sorted(scales, key=lambda k: int(k.rsplit(".", 1)[1]))
        joined[by_level[0].rsplit(".", 1)[0]] = torch.stack([scales[k].reshape(()) for k in by_level])
    return joined
