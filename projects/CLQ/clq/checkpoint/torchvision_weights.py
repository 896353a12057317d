"""ImageNet weights of torchvision's backbones: where they are, and their names in a detector."""

import os
from collections.abc import Mapping

import torch
import torchvision
from iopath.common.file_io import file_lock
from torch import Tensor

from clq.checkpoint.backbone_names import backbone_names
from clq.errors import UserError

TORCHVISION = "torchvision://"
TORCHVISION_BACKBONES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
)


def torchvision_to_detectron2(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of a ResNet, Res2Net or ShuffleNet to those of a detector, under ``backbone.bottom_up``.

    The classifier (``fc``, ``conv5``) and the counters of batches, which a detector does not need, are left out.

    Args:
        state_dict: weights under the names of torchvision. What torchvision does not have (deformable convolutions,
            and Res2Net in its v1d form) has the names of MMDetection.

    Raises:
        UserError: there is a weight that no such backbone has.
    """
    names, unknown = backbone_names(state_dict)
    if unknown:
        raise UserError(
            f"{unknown[0]}: neither a backbone of torchvision nor a Res2Net has this weight; use one of "
            f"{', '.join(TORCHVISION_BACKBONES)}."
        )
    return {name: state_dict[key] for key, name in names.items()}


def torchvision_file(name: str) -> str:
    """Returns the path of a backbone's ImageNet weights (IMAGENET1K_V1) in torch.hub's cache.

    The file is downloaded if it is not there.

    Raises:
        UserError: torchvision has no such backbone.
    """
    if name not in TORCHVISION_BACKBONES:
        raise UserError(f"{TORCHVISION}{name}: no such backbone; use one of {', '.join(TORCHVISION_BACKBONES)}.")
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(weights.url))
    if not os.path.isfile(path):
        with file_lock(path):  # of all processes of a machine, the first one downloads
            weights.get_state_dict(progress=True, check_hash=True)
    return path
