"""A checkpoint of NanoDet-m in its authors' names: which widths it has, and whether it holds all of it."""

import re
from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor

from clq.checkpoint.backbone_names import BODY, rename
from clq.checkpoint.foreign import (
    Converted,
    check_finite,
    check_whole,
    config_with,
    differing,
    listed,
    read_checkpoint,
    sizes_told,
    weights_of,
)
from clq.errors import UserError
from clq.modeling.backbone.shufflenet_pan import SHUFFLENETS

CONFIGS = "configs/NANODET/nanodet_m_320.yaml", "configs/NANODET/nanodet_m_416.yaml"  # one detector at two sizes
_SOURCE = "NanoDet"
_AVERAGED = "avg_model."
_PREDICTOR = r"head\.gfl_cls\.(\d+)\.(weight|bias)"  # class logits, then those of the boxes
# The authors' names -> ours.
_NAMES = (
    (r"backbone\.((?:conv1\.\d|stage\d)\..+)", BODY + r"\1"),
    (r"fpn\.lateral_convs\.(\d+)\.conv\.(weight|bias)", r"backbone.laterals.\1.\2"),
    (r"head\.cls_convs\.(\d+)\.(\d+)\.depthwise\.weight", r"head.heads.\1.shared.\2.0.weight"),
    (r"head\.cls_convs\.(\d+)\.(\d+)\.dwnorm\.(\w+)", r"head.heads.\1.shared.\2.0.norm.\3"),
    (r"head\.cls_convs\.(\d+)\.(\d+)\.pointwise\.weight", r"head.heads.\1.shared.\2.1.weight"),
    (r"head\.cls_convs\.(\d+)\.(\d+)\.pwnorm\.(\w+)", r"head.heads.\1.shared.\2.1.norm.\3"),
)
# In every checkpoint, and read by nothing: a second box predictor of each level, the values of the bins.
_UNUSED = r"head\.gfl_reg\.\d+\.(?:weight|bias)|head\.distribution_project\.project"
# Names of other detectors of the same authors -> why they are refused; the first that is found counts.
_OTHERS = (
    (
        r"aux_(?:fpn|head)\..*|fpn\.(?:reduce_layers|top_down_blocks|downsamples)\..*",
        "is NanoDet-Plus, another neck, head and assignment",
    ),
    (r"head\.reg_convs\..*", "has a tower of its own for boxes (share_cls_reg False)"),
    (r"fpn\.(?!lateral_convs\.\d+\.conv\.).*", "has another neck than additions"),
    (r"backbone\.(?!conv1\.\d|stage\d\.\d+\.branch).*", "has another backbone than ShuffleNetV2"),
    (r"head\.cls_convs\.\d+\.\d+\.(?:conv|gn|bn|norm)\..*", "has full convolutions in its head"),
)


def convert_nanodet_checkpoint(path: str) -> Converted:
    """A checkpoint file of NanoDet-m, converted whole.

    Read are the layouts of all releases: ``.pth`` with the names as they are (to v0.2.0), and Lightning's ``.ckpt``
    with ``model.`` before them; averaged weights (``avg_model.``) are taken where there are some. The weights do not
    tell at which size it was trained, so there are two configs.

    Raises:
        UserError: no such file, no checkpoint, one that holds more than weights and plain values, of another detector,
            or with weights that have no place here, that are missing, or that are not finite.
    """
    checkpoint = read_checkpoint(path, _SOURCE, "{'state_dict': c['state_dict']}")
    weights = _plain_names(weights_of(path, checkpoint, _SOURCE))
    _refuse_others(path, weights)
    with sizes_told(path, _SOURCE):
        classes = _num_classes(path, weights)
        converted = _convert(path, weights, classes)
        check_finite(path, converted)
        found = _size_keys(path, converted)
    keys = differing(config_with(CONFIGS[0], {}), found)
    check_whole(path, CONFIGS[0], keys, converted)
    return Converted(converted, CONFIGS, keys)


def _plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what DataParallel and Lightning put in front; of a training with averaged weights, these alone."""
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    averaged = {key: value for key, value in weights.items() if key.startswith(_AVERAGED)}
    return {re.sub(r"^(?:avg_model|model)\.(?:module\.)?", "", key): w for key, w in (averaged or weights).items()}


def _refuse_others(path: str, weights: Mapping[str, Tensor]) -> None:
    if not any(re.fullmatch(_PREDICTOR, key) for key in weights):
        raise UserError(f"{path}: no NanoDet, it has no head.gfl_cls (but {listed(weights)}); give a checkpoint of it.")
    for pattern, reason in _OTHERS:
        for key in weights:
            if re.fullmatch(pattern, key):
                raise UserError(
                    f"{path}: {reason} ({listed([key])}), which this project does not have; give a NanoDet-m."
                )


def _num_classes(path: str, weights: Mapping[str, Tensor]) -> int:
    """The predictor's channels without those of the boxes, which the unused parts of the head count too."""
    told = {4 * len(w) for key, w in weights.items() if key == "head.distribution_project.project"}
    told |= {len(w) for key, w in weights.items() if re.fullmatch(_UNUSED, key) and "gfl_reg" in key}
    channels = len(weights["head.gfl_cls.0.weight"])
    if len(told) != 1:
        raise UserError(
            f"{path}: head.gfl_reg and head.distribution_project tell {sorted(told) or 'no number'} of box channels; "
            "they must be there and agree, as the rest of head.gfl_cls is the classes'."
        )
    (of_boxes,) = told
    if of_boxes % 4 or not 8 <= of_boxes < channels:
        raise UserError(
            f"{path}: {of_boxes} box channels of {channels} in head.gfl_cls leave no classes or no bins; give an "
            "undamaged checkpoint."
        )
    return channels - of_boxes


def _convert(path: str, weights: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
    converted, unplaced = {}, []
    for key, value in weights.items():
        if re.fullmatch(_UNUSED, key):
            continue
        if match := re.fullmatch(_PREDICTOR, key):
            head = f"head.heads.{match[1]}."
            converted[f"{head}cls_logits.{match[2]}"] = value[:classes].clone()
            converted[f"{head}box_pred.{match[2]}"] = value[classes:].clone()
        elif name := rename(key, _NAMES):
            converted[name] = value
        else:
            unplaced.append(key)
    if unplaced:
        raise UserError(
            f"{path}: {len(unplaced)} of its weights have no place here: {listed(unplaced)}; give a NanoDet-m without."
        )
    return converted


def _size_keys(path: str, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """The keys of backbone, neck and head that the weights tell."""
    predictor = weights["head.heads.0.cls_logits.weight"]
    return {
        "MODEL.SHUFFLENET.NAME": _backbone(path, weights),
        "MODEL.FPN.OUT_CHANNELS": len(weights["backbone.laterals.0.weight"]),
        "MODEL.CLQ.NUM_CLASSES": len(predictor),
        "MODEL.CLQ.CONV_DIM": predictor.shape[1],
        "MODEL.CLQ.NUM_CONVS": sum(bool(re.fullmatch(r"head\.heads\.0\.shared\.\d+\.1\.weight", k)) for k in weights),
        "MODEL.CLQ.BOX.REG_MAX": len(weights["head.heads.0.box_pred.weight"]) // 4 - 1,
    }


def _backbone(path: str, weights: Mapping[str, Tensor]) -> str:
    """The ShuffleNetV2 whose first unit has this width."""
    mark = "stage2.0.branch1.2.weight"
    width = len(weights[BODY + mark])
    for name in SHUFFLENETS:
        with torch.device("meta"):
            body = torchvision.models.get_model(name, weights=None)
        if len(body.get_parameter(mark)) == width:
            return name
    raise UserError(
        f"{path}: its backbone has {width} channels in {mark}, as none of {', '.join(SHUFFLENETS)} has; give one of these."
    )
