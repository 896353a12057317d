"""Converts whole checkpoints of NanoDet-m from its authors' code."""

import re
from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor

from clq.checkpoint.backbone_names import BOTTOM_UP, rename
from clq.checkpoint.foreign import (
    Converted,
    check_complete,
    check_finite,
    config_with,
    differing,
    listed,
    read_checkpoint,
    reporting_unexpected_weights,
    weights_of,
)
from clq.errors import UserError
from clq.modeling.backbone.shufflenet_pan import SHUFFLENETS

CONFIGS = (
    "configs/NANODET/nanodet_m_320.yaml",
    "configs/NANODET/nanodet_m_416.yaml",
)  # the same detector at two image sizes
_SOURCE = "NanoDet"
_AVERAGED = "avg_model."
_PREDICTOR = r"head\.gfl_cls\.(\d+)\.(weight|bias)"  # class channels, followed by box channels
# Patterns of the authors' names -> names of this project.
_NAMES = (
    (r"backbone\.((?:conv1\.\d|stage\d)\..+)", BOTTOM_UP + r"\1"),
    (r"fpn\.lateral_convs\.(\d+)\.conv\.(weight|bias)", r"backbone.laterals.\1.\2"),
    (r"head\.cls_convs\.(\d+)\.(\d+)\.depthwise\.weight", r"head.heads.\1.shared.\2.0.weight"),
    (r"head\.cls_convs\.(\d+)\.(\d+)\.dwnorm\.(\w+)", r"head.heads.\1.shared.\2.0.norm.\3"),
    (r"head\.cls_convs\.(\d+)\.(\d+)\.pointwise\.weight", r"head.heads.\1.shared.\2.1.weight"),
    (r"head\.cls_convs\.(\d+)\.(\d+)\.pwnorm\.(\w+)", r"head.heads.\1.shared.\2.1.norm.\3"),
)
# Every checkpoint has these, and nothing reads them: a second box predictor for each level, and the values of the bins.
_UNUSED = r"head\.gfl_reg\.\d+\.(?:weight|bias)|head\.distribution_project\.project"
# Patterns of names in other detectors of the same authors -> why they are refused. The first match counts.
_OTHERS = (
    (
        r"aux_(?:fpn|head)\..*|fpn\.(?:reduce_layers|top_down_blocks|downsamples)\..*",
        "is NanoDet-Plus, which has another neck, head and assigner",
    ),
    (r"head\.reg_convs\..*", "has a separate tower for boxes (share_cls_reg False)"),
    (r"fpn\.(?!lateral_convs\.\d+\.conv\.).*", "has another neck than PAN with additions"),
    (r"backbone\.(?!conv1\.\d|stage\d\.\d+\.branch).*", "has another backbone than ShuffleNetV2"),
    (r"head\.cls_convs\.\d+\.\d+\.(?:conv|gn|bn|norm)\..*", "has full convolutions in its head"),
)


def convert_nanodet_checkpoint(path: str) -> Converted:
    """Converts a checkpoint file of NanoDet-m.

    The files of all releases can be read: ``.pth`` files, whose names have no prefix (up to v0.2.0), and ``.ckpt``
    files of Lightning, whose names start with ``model.``. If a file has averaged weights (``avg_model.``), these are
    used. The weights do not show the image size of the training, so the result has two configs.

    Args:
        path: path of the file.

    Raises:
        UserError: the file does not exist, is not a checkpoint, holds more than weights and plain values, or holds
            another detector; or weights are unknown, missing or not finite.
    """
    checkpoint = read_checkpoint(path, _SOURCE, "{'state_dict': c['state_dict']}")
    weights = _plain_names(weights_of(path, checkpoint, _SOURCE))
    _refuse_others(path, weights)
    with reporting_unexpected_weights(path, _SOURCE):
        classes = _num_classes(path, weights)
        converted = _convert(path, weights, classes)
        check_finite(path, converted)
        found = _size_keys(path, converted)
    keys = differing(config_with(CONFIGS[0], {}), found)
    check_complete(path, CONFIGS[0], keys, converted)
    return Converted(converted, CONFIGS, keys)


def _plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the prefixes of DataParallel and Lightning; only the averaged ones, if there are any."""
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    averaged = {key: value for key, value in weights.items() if key.startswith(_AVERAGED)}
    return {re.sub(r"^(?:avg_model|model)\.(?:module\.)?", "", key): w for key, w in (averaged or weights).items()}


def _refuse_others(path: str, weights: Mapping[str, Tensor]) -> None:
    """Raises UserError if these are the weights of another detector."""
    if not any(re.fullmatch(_PREDICTOR, key) for key in weights):
        raise UserError(
            f"{path}: is not NanoDet, because it has no head.gfl_cls (but {listed(weights)}); give a NanoDet-m."
        )
    for pattern, reason in _OTHERS:
        for key in weights:
            if re.fullmatch(pattern, key):
                raise UserError(f"{path}: {reason} ({listed([key])}) and is not supported; give a NanoDet-m.")


def _num_classes(path: str, weights: Mapping[str, Tensor]) -> int:
    """The number of class channels: all channels of the predictor without those of the boxes.

    The number of box channels is that of the unused parts of the head.
    """
    found = {4 * len(w) for key, w in weights.items() if key == "head.distribution_project.project"}
    found |= {len(w) for key, w in weights.items() if re.fullmatch(_UNUSED, key) and "gfl_reg" in key}
    channels = len(weights["head.gfl_cls.0.weight"])
    if len(found) != 1:
        raise UserError(
            f"{path}: head.gfl_reg and head.distribution_project have {sorted(found) or 'no'} box channels, but must "
            "have one number, which separates boxes from classes in head.gfl_cls; give an undamaged checkpoint."
        )
    (box_channels,) = found
    if box_channels % 4 or not 8 <= box_channels < channels:
        raise UserError(
            f"{path}: {box_channels} box channels of {channels} in head.gfl_cls leave no classes or no bins; give an "
            "undamaged checkpoint."
        )
    return channels - box_channels


def _convert(path: str, weights: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
    """Renames the weights and separates the channels of classes and boxes."""
    converted: dict[str, Tensor] = {}
    unplaced: list[str] = []
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
            f"{path}: {len(unplaced)} of its weights have no counterpart here: {listed(unplaced)}; give a NanoDet-m "
            "without them."
        )
    return converted


def _size_keys(path: str, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """The config keys of the backbone, neck and head, inferred from the weights."""
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
    """The name of the ShuffleNetV2 whose first unit has the width of these weights."""
    key = "stage2.0.branch1.2.weight"
    width = len(weights[BOTTOM_UP + key])
    for name in SHUFFLENETS:
        with torch.device("meta"):
            model = torchvision.models.get_model(name, weights=None)
        if len(model.get_parameter(key)) == width:
            return name
    raise UserError(
        f"{path}: its backbone has {width} channels in {key}, unlike {', '.join(SHUFFLENETS)}; give a detector with "
        "one of these."
    )
