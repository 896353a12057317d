"""Weights of other code bases under this project's names."""

import logging
import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from clq.engine.body_names import BODY, body_names, rename
from clq.errors import UserError

logger = logging.getLogger(__name__)

# MMDetection's names in the heads of ATSS, GFL, GFLv2, VFNet and TOOD and in the FPN -> ours. Scales are joined later.
_HEAD = (
    (r"(cls|reg)_convs\.(\d+)\.conv\.(\w+)", r"\1_tower.\2.\3"),
    (r"(cls|reg)_convs\.(\d+)\.gn\.(\w+)", r"\1_tower.\2.norm.\3"),
    (r"(?:atss|gfl)_cls\.(\w+)", r"cls_logits.\1"),
    (r"(?:atss|gfl)_reg\.(\w+)", r"box_pred.\1"),
    (r"atss_centerness\.(\w+)", r"quality_pred.\1"),
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
_GFLV2 = "configs/GFLV2/mmdet_gflv2_R_50_FPN_1x.yaml"
# Config of the row, with a ResNet-50 -> the layers that its head must have and those it must not have.
_ROWS = {
    "configs/ATSS/mmdet_atss_R_50_FPN_1x.yaml": ("atss_cls atss_reg atss_centerness", ""),
    "configs/VFNET/mmdet_vfnet_R_50_FPN_1x.yaml": ("vfnet_cls vfnet_reg_refine scales_refine", ""),
    "configs/TOOD/mmdet_tood_R_50_FPN_1x.yaml": ("tood_cls tood_reg inter_convs reg_offset_module", ""),
    "configs/GFL/mmdet_gfl_R_50_FPN_1x.yaml": ("gfl_cls gfl_reg", "reg_conf"),
    _GFLV2: ("gfl_cls gfl_reg reg_conf", ""),
}
# The keys that those configs leave open, as they are in them.
_OPEN = {
    "MODEL.BACKBONE.NAME": "build_dense_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False] * 4,
    "MODEL.RESNETS.DEFORM_MODULATED": False,
    "MODEL.CLQ.NUM_CLASSES": 80,
}
# (blocks in res4, whether they are bottlenecks) -> depth
_DEPTHS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101, (36, True): 152}
_COCO = 80  # classes


def convert_mmdet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MMDetection's ATSS, GFL, GFLv2, VFNet or TOOD weights under this project's names, whatever width and classes.

    Args:
        state_dict: of a whole detector (``backbone.``, ``neck.``, ``bbox_head.``), which becomes that of a whole
            :class:`~clq.modeling.detector.CLQ`, or of the head alone, without a prefix, which becomes that of its head.
            A whole checkpoint, with its weights under ``state_dict``, does too.

    Returns:
        The converted weights. What has no place is left out and listed in a warning.
    """
    converted, unplaced = _convert(state_dict.get("state_dict", state_dict))
    if unplaced:
        logger.warning("convert_mmdet: no place for %d weights: %s", len(unplaced), ", ".join(unplaced))
    return converted


def _convert(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
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
    return _join_scales({name: state_dict[key] for key, name in names.items()}), unplaced


def convert_checkpoint(path: str) -> tuple[dict[str, Tensor], str, dict[str, object]]:
    """A checkpoint file of MMDetection 2.x or 3.x, converted whole.

    The class layer of GFLv2's authors has a channel for the background, which nothing reads; it is left out.

    Returns:
        The weights of a :class:`~clq.modeling.detector.CLQ`, the config of its row, and the keys in which this detector
        differs from that config: another body, another number of classes.

    Raises:
        UserError: no such file, no checkpoint, one that holds more than weights, of another detector, or with weights
            that have no place here.
    """
    checkpoint = _read(path)
    weights = checkpoint.get("state_dict", checkpoint)
    config = _row_of(path, checkpoint, weights)
    converted, unplaced = _convert(weights)
    if unplaced:
        raise UserError(f"{path}: {len(unplaced)} of its weights have no place here: {', '.join(unplaced[:8])} ...")
    channels = len(converted["head.cls_logits.weight"])
    if config == _GFLV2 and channels == _num_classes(checkpoint) + 1:
        logger.info("%s: %d class channels; the last one, of the background, is left out", path, channels)
        for name in ("head.cls_logits.weight", "head.cls_logits.bias"):
            converted[name] = converted[name][:-1].clone()
    found = {**_body_of(path, converted), "MODEL.CLQ.NUM_CLASSES": len(converted["head.cls_logits.weight"])}
    return converted, config, {key: value for key, value in found.items() if value != _OPEN[key]}


def _read(path: str) -> dict:
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give a checkpoint of MMDetection.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # reading bytes that are no checkpoint can raise anything
        raise UserError(
            f"{path}: no checkpoint of weights and plain values alone. If you trust it, load it with torch.load(..., "
            "weights_only=False), save its state_dict by torch.save, and convert that."
        ) from e
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}, not the weights of a detector.")
    return checkpoint


def _row_of(path: str, checkpoint: Mapping, weights: Mapping[str, Tensor]) -> str:
    if "PAAHead" in str(checkpoint.get("meta")):  # ATSS's layers, but scores of another meaning
        raise UserError(f"{path}: is PAA, which this project does not have.")
    if "anchor_based" in str(checkpoint.get("meta")):  # TOOD's layers, but deltas of anchors in place of distances
        raise UserError(f"{path}: is the anchor-based TOOD; this project has the anchor-free one.")
    layers = {key.split(".")[1] for key in weights if key.startswith("bbox_head.")}
    for config, (needed, absent) in _ROWS.items():
        if layers >= set(needed.split()) and not layers & set(absent.split()):
            return config
    has = f"its head has {', '.join(sorted(layers))}" if layers else "it has no bbox_head"
    raise UserError(f"{path}: no ATSS, GFL, GFLv2, VFNet or TOOD of MMDetection ({has}).")


def _body_of(path: str, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """The config keys of the body in a whole detector's converted weights."""
    shapes = {key[len(BODY) :]: value.shape for key, value in weights.items() if key.startswith(BODY)}
    bottleneck, res2net = "res2.0.conv3.weight" in shapes, "res2.0.conv2.0.weight" in shapes
    num_blocks = len({key.split(".")[1] for key in shapes if key.startswith("res4.")})
    if (num_blocks, bottleneck) not in _DEPTHS:
        raise UserError(f"{path}: its body, with {num_blocks} blocks in layer3, is of no depth that Detectron2 has.")
    of_chain = ".0" if res2net else ""  # a Res2Net's 3x3 convolutions are several, and alike
    offsets = [shapes.get(f"res{i}.0.conv2_offset{of_chain}.bias", (0,))[0] for i in (2, 3, 4, 5)]
    if not set(offsets) <= {0, 18, 27}:  # (dy, dx), or these and a weight, of 9 taps
        raise UserError(f"{path}: has deformable convolutions in several groups, which are not told apart here.")
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


def _num_classes(checkpoint: Mapping) -> int:
    """Of the data set that MMDetection noted (2.x: CLASSES, 3.x: dataset_meta); COCO's where it noted none."""
    meta = checkpoint.get("meta") or {}
    classes = meta.get("CLASSES") or (meta.get("dataset_meta") or {}).get("classes")
    return len(classes) if classes else _COCO


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
