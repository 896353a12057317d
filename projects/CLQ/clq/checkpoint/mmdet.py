"""Converts whole checkpoints of MMDetection, after finding out which detector they hold."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

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
from clq.checkpoint.infer_config import backbone_keys, head_keys
from clq.checkpoint.mmdet_config import check_settings, head_of
from clq.checkpoint.mmdet_config_text import read_config
from clq.checkpoint.mmdet_names import convert
from clq.checkpoint.mmdet_test_settings import selection_keys
from clq.errors import UserError

logger = logging.getLogger(__name__)

_SOURCE = "MMDetection"
_KINDS = "ATSS, GFL, GFLv2, VFNet, TOOD or CLQ"
_KEPT = (
    "{'state_dict': c['state_dict'], 'meta': {k: c['meta'][k] for k in ('config', 'cfg', 'CLASSES', 'dataset_meta') if "
    "k in c['meta']}}"
)


@dataclass(frozen=True)
class _Detector:
    """A detector that MMDetection and this project both have.

    Attributes:
        config: path of this project's config, which has the backbone of a published detector.
        head: name of the head's class in MMDetection.
        layers: names of layers that its head must have.
        absent: names of layers that its head must not have.
        distributions: whether it predicts boxes as distributions.
        background: whether its class layer may have a channel for the background, which nothing reads.
    """

    config: str
    head: str
    layers: frozenset[str]
    absent: frozenset[str] = frozenset()
    distributions: bool = False
    background: bool = False


_DETECTORS = (
    _Detector(
        "configs/ATSS/mmdet_atss_R_50_FPN_1x.yaml",
        "ATSSHead",
        frozenset({"atss_cls", "atss_reg", "atss_centerness"}),
    ),
    _Detector(
        "configs/VFNET/mmdet_vfnet_R_50_FPN_1x.yaml",
        "VFNetHead",
        frozenset({"vfnet_cls", "vfnet_reg_refine", "scales_refine"}),
    ),
    _Detector(
        "configs/TOOD/mmdet_tood_R_50_FPN_1x.yaml",
        "TOODHead",
        frozenset({"tood_cls", "tood_reg", "inter_convs", "reg_offset_module"}),
    ),
    _Detector(
        "configs/GFL/mmdet_gfl_R_50_FPN_1x.yaml",
        "GFLHead",
        frozenset({"gfl_cls", "gfl_reg"}),
        absent=frozenset({"reg_conf"}),
        distributions=True,
    ),
    _Detector(
        "configs/GFLV2/mmdet_gflv2_R_50_FPN_1x.yaml",
        "GFocalHead",  # only in the MMDetection of GFLv2's authors
        frozenset({"gfl_cls", "gfl_reg", "reg_conf"}),
        distributions=True,
        background=True,
    ),
    _Detector(
        "configs/CLQ/mmdet_clq_R_101_FPN_2x_ms.yaml",
        "CLQ_Head_align_iou_pred",  # only in the MMDetection of CLQ's authors
        frozenset({"clq_cls", "clq_reg", "retina_iou", "feature_alignment"}),
        distributions=True,
        background=True,
    ),
)
# Layers of heads that look like a supported one -> what they belong to.
_OTHERS = {
    "lqe_layer": "a layer of the later head of CLQ's authors, an FCOS with another assigner and score",
    "conv_centerness": "a layer of FCOS",
}
_COCO_CLASSES = 80


def convert_checkpoint(path: str) -> Converted:
    """Converts a checkpoint file of MMDetection 2.x or 3.x.

    The detector is recognized by its weights and by the config that MMDetection stores in the file. If the file has no
    config, the weights alone decide, with a warning. The class layers of the authors of GFLv2 and CLQ have a channel
    for the background, which nothing reads. It is left out.

    Args:
        path: path of the file.

    Raises:
        UserError: the file does not exist, is not a checkpoint, holds more than weights and plain values, or holds
            another detector; the detector was trained with settings that this project does not have; or weights are
            unknown, missing or not finite.
    """
    checkpoint = read_checkpoint(path, _SOURCE, _KEPT)
    weights = _weights(path, checkpoint)
    config = read_config(path, _config_text(checkpoint))
    detector = _detector_of(path, weights, config)
    converted, unplaced = convert(weights)
    if unplaced:
        raise UserError(
            f"{path}: {len(unplaced)} of its weights have no counterpart here: {listed(unplaced)}; give a detector "
            "without them."
        )
    check_finite(path, converted)
    with reporting_unexpected_weights(path, _SOURCE):
        if detector.background:
            _remove_background(
                path,
                converted,
                num_names=len(_class_names(checkpoint)),
                config_classes=head_of(config).num_classes,
            )
        found = {**backbone_keys(path, converted), **head_keys(converted, distributions=detector.distributions)}
    standard = config_with(detector.config, {})
    keys = differing(standard, found)
    check_complete(path, detector.config, keys, converted)
    check_settings(path, config, config_with(detector.config, keys), detector.config)
    return Converted(converted, (detector.config,), {**keys, **differing(standard, selection_keys(path, config))})


def _weights(path: str, checkpoint: dict) -> dict[str, Tensor]:
    """The weights of a checkpoint; raises UserError if a scale is not a single number."""
    weights = weights_of(path, checkpoint, _SOURCE)
    for key, value in weights.items():
        if key.endswith(".scale") and value.numel() != 1:
            shape = list(value.shape)
            raise UserError(
                f"{path}: {listed([key])} is of shape {shape}, not one number; give a checkpoint as MMDetection saves "
                "it."
            )
    return weights


def _meta(checkpoint: dict) -> dict:
    meta = checkpoint.get("meta")
    return meta if isinstance(meta, dict) else {}


def _config_text(checkpoint: dict) -> str:
    """The config of the training as text (2.x: ``config``, 3.x: ``cfg``); empty if the file has none."""
    meta = _meta(checkpoint)
    found = [x for x in (meta.get("config"), meta.get("cfg")) if x is not None and not (isinstance(x, str) and not x)]
    return str(found[0]) if found else ""  # what is no text is refused as a config


def _class_names(checkpoint: dict) -> list:
    """The class names of the data set (2.x: ``CLASSES``, 3.x: ``dataset_meta``); empty if the file has none."""
    meta = _meta(checkpoint)
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, dict) else {}
    found = [meta.get("CLASSES"), dataset.get("classes"), dataset.get("CLASSES")]
    return next((list(names) for names in found if isinstance(names, (list, tuple)) and names), [])


def _detector_of(path: str, weights: Mapping[str, Tensor], config: dict) -> _Detector:
    """Finds the detector whose head has these layers.

    Raises:
        UserError: there is none, or the config in the checkpoint describes another detector.
    """
    layers = {key.split(".")[1] for key in weights if key.startswith("bbox_head.")}
    detector = next((d for d in _DETECTORS if layers >= d.layers and not layers & d.absent), None)
    if detector is None and {"clq_cls", "clq_reg"} <= layers:
        raise UserError(
            f"{path}: is CLQ without feature alignment (no bbox_head.feature_alignment), which the code of its "
            "authors does not have; give a whole checkpoint, or train it with "
            "configs/ablations/clq_wo_align_R_50_FPN_1x.yaml."
        )
    if detector is None:
        has = f"its head has {listed(sorted(layers))}" if layers else "it has no bbox_head"
        remark = next((f", {what}" for layer, what in _OTHERS.items() if layer in layers), "")
        raise UserError(f"{path}: is not {_KINDS} of MMDetection ({has}{remark}); give a checkpoint of one of them.")
    kind = head_of(config).kind
    if not config:
        logger.warning("%s: has no config of its training; the weights are those of %s.", path, detector.config)
    elif kind != detector.head:  # PAA and LAD have the layers of ATSS and other scores
        found = listed([kind]) if kind else "a model without a bbox_head"
        raise UserError(f"{path}: its config has {found}, which is not supported; give a checkpoint of {_KINDS}.")
    return detector


def _remove_background(path: str, weights: dict[str, Tensor], *, num_names: int, config_classes: int) -> None:
    """Removes the class channel of the background, if there is one.

    The number of classes in the config counts more than the number of class names, because the config built the head.

    Args:
        path: path of the checkpoint, for messages.
        weights: converted weights; changed in place.
        num_names: number of class names in the checkpoint's meta; 0 if it has none.
        config_classes: number of classes in the checkpoint's config; 0 if it has none.

    Raises:
        KeyError: there is no class layer.
        UserError: the number of channels fits neither number, or both are 0 and it is not that of COCO.
    """
    channels, classes = len(weights["head.cls_logits.weight"]), config_classes or num_names
    named = f"{num_names} class names (CLASSES in 2.x, dataset_meta in 3.x)"
    if not classes and channels not in (_COCO_CLASSES, _COCO_CLASSES + 1):
        raise UserError(
            f"{path}: has {channels} class channels and no class names, so it is not known whether the last channel is "
            "that of the background; put the names into its meta, as CLASSES."
        )
    if classes and channels not in (classes, classes + 1):
        source = f"its config has num_classes = {config_classes}" if config_classes else f"its meta has {named}"
        raise UserError(f"{path}: {source}, but its weights have {channels} class channels; correct that in its meta.")
    if num_names and num_names != classes:
        logger.warning("%s: has %s; num_classes = %d of its config is used instead.", path, named, config_classes)
    if channels == (classes or _COCO_CLASSES) + 1:
        logger.info("%s: %d class channels; the last one, that of the background, is left out", path, channels)
        for name in ("head.cls_logits.weight", "head.cls_logits.bias"):
            weights[name] = weights[name][:-1].clone()
