"""A checkpoint of MMDetection: which detector it holds, and whether it holds all of it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

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
from clq.checkpoint.infer_config import body_keys, head_keys
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
class _Variant:
    """A variant of this project as MMDetection has it.

    Attributes:
        config: ours, with the backbone of the published detector that is told without a key.
        head: name of the class.
        layers: that its head must have.
        absent: and must not have.
        distributions: whether it predicts boxes as distributions.
        background: whether its class layer may have a channel for the background, which nothing reads.
    """

    config: str
    head: str
    layers: frozenset[str]
    absent: frozenset[str] = frozenset()
    distributions: bool = False
    background: bool = False


_VARIANTS = (
    _Variant(
        "configs/ATSS/mmdet_atss_R_50_FPN_1x.yaml",
        "ATSSHead",
        frozenset({"atss_cls", "atss_reg", "atss_centerness"}),
    ),
    _Variant(
        "configs/VFNET/mmdet_vfnet_R_50_FPN_1x.yaml",
        "VFNetHead",
        frozenset({"vfnet_cls", "vfnet_reg_refine", "scales_refine"}),
    ),
    _Variant(
        "configs/TOOD/mmdet_tood_R_50_FPN_1x.yaml",
        "TOODHead",
        frozenset({"tood_cls", "tood_reg", "inter_convs", "reg_offset_module"}),
    ),
    _Variant(
        "configs/GFL/mmdet_gfl_R_50_FPN_1x.yaml",
        "GFLHead",
        frozenset({"gfl_cls", "gfl_reg"}),
        absent=frozenset({"reg_conf"}),
        distributions=True,
    ),
    _Variant(
        "configs/GFLV2/mmdet_gflv2_R_50_FPN_1x.yaml",
        "GFocalHead",  # of its authors' MMDetection; MMDetection itself has none
        frozenset({"gfl_cls", "gfl_reg", "reg_conf"}),
        distributions=True,
        background=True,
    ),
    _Variant(
        "configs/CLQ/mmdet_clq_R_101_FPN_2x_ms.yaml",
        "CLQ_Head_align_iou_pred",  # of its authors' MMDetection
        frozenset({"clq_cls", "clq_reg", "retina_iou", "feature_alignment"}),
        distributions=True,
        background=True,
    ),
)
# Layers of heads that are taken for another easily -> what they are.
_OTHERS = {
    "lqe_layer": "of CLQ's authors' later head, an FCOS with another assignment and score",
    "conv_centerness": "of FCOS",
}
_COCO = 80  # classes


def convert_checkpoint(path: str) -> Converted:
    """A checkpoint file of MMDetection 2.x or 3.x, converted whole.

    Which detector it is, its weights tell and the config that MMDetection keeps in it; a file without one is taken at
    its weights' word, with a warning. The class layers of GFLv2's and CLQ's authors have a channel for the background,
    which nothing reads; it is left out.

    Raises:
        UserError: no such file, no checkpoint, one that holds more than weights and plain values, of another detector,
            trained in a way that the variant's config does not have, or with weights that have no place here, that are
            missing, or that are not finite.
    """
    checkpoint = read_checkpoint(path, _SOURCE, _KEPT)
    weights = _weights(path, checkpoint)
    config = read_config(path, _config_text(checkpoint))
    variant = _variant_of(path, weights, config)
    converted, unplaced = convert(weights)
    if unplaced:
        raise UserError(
            f"{path}: {len(unplaced)} of its weights have no place here: {listed(unplaced)}; give a detector without "
            "them."
        )
    check_finite(path, converted)
    with sizes_told(path, _SOURCE):
        if variant.background:
            _leave_out_background(path, converted, len(_class_names(checkpoint)), head_of(config)[1])
        found = {**body_keys(path, converted), **head_keys(converted, variant.distributions)}
    standard = config_with(variant.config, {})
    keys = differing(standard, found)
    check_whole(path, variant.config, keys, converted)
    check_settings(path, config, config_with(variant.config, keys), variant.config)
    return Converted(converted, (variant.config,), {**keys, **differing(standard, selection_keys(path, config))})


def _weights(path: str, checkpoint: dict) -> dict[str, Tensor]:
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
    """The training's config as MMDetection noted it (2.x: config, 3.x: cfg); empty if it noted none."""
    meta = _meta(checkpoint)
    return str(meta.get("config") or meta.get("cfg") or "")


def _class_names(checkpoint: dict) -> list:
    """Of the data set that MMDetection noted (2.x: CLASSES, 3.x: dataset_meta); empty if it noted none."""
    meta = _meta(checkpoint)
    noted = meta.get("dataset_meta")
    noted = noted if isinstance(noted, dict) else {}
    names = meta.get("CLASSES") or noted.get("classes") or noted.get("CLASSES")
    return list(names) if isinstance(names, (list, tuple)) else []


def _variant_of(path: str, weights: Mapping[str, Tensor], config: dict) -> _Variant:
    """The variant whose head has these layers, provided that the config, if there is one, says the same."""
    layers = {key.split(".")[1] for key in weights if key.startswith("bbox_head.")}
    variant = next((v for v in _VARIANTS if layers >= v.layers and not layers & v.absent), None)
    if variant is None and {"clq_cls", "clq_reg"} <= layers:
        raise UserError(
            f"{path}: is CLQ without feature alignment (no bbox_head.feature_alignment), which its authors' code does "
            "not have; give a whole checkpoint, or train it here with configs/ablations/clq_wo_align_R_50_FPN_1x.yaml."
        )
    if variant is None:
        has = f"its head has {listed(sorted(layers))}" if layers else "it has no bbox_head"
        kind = next((f", {what}" for layer, what in _OTHERS.items() if layer in layers), "")
        raise UserError(f"{path}: no {_KINDS} of MMDetection ({has}{kind}); give a checkpoint of one of them.")
    kind, _ = head_of(config)
    if not config:
        logger.warning("%s: has no config of its training; by its weights it is what %s is.", path, variant.config)
    elif kind != variant.head:  # PAA and LAD have ATSS's layers, and scores of another meaning
        found = listed([kind]) if kind else "a model without a bbox_head"
        raise UserError(f"{path}: is of {found}, which this project does not have; give a checkpoint of {_KINDS}.")
    return variant


def _leave_out_background(path: str, weights: dict[str, Tensor], names: int, of_config: int) -> None:
    """Cuts the background's channel off, if there is one.

    A head is built with the number of classes in its config, whatever names of a data set are beside it.

    Args:
        path: path of the checkpoint, for errors.
        weights: converted; changed in place.
        names: number of names of classes in its meta; 0 if it has none.
        of_config: number of classes in its config; 0 if it has none.
    """
    channels, classes = len(weights["head.cls_logits.weight"]), of_config or names
    named = f"{names} names of classes (CLASSES in 2.x, dataset_meta in 3.x)"
    if not classes and channels not in (_COCO, _COCO + 1):
        raise UserError(
            f"{path}: has {channels} class channels and no names of classes, so whether the last is the background's "
            "cannot be told; put the names into its meta, as CLASSES."
        )
    if classes and channels not in (classes, classes + 1):
        noted = f"its config has num_classes = {of_config}" if of_config else f"its meta has {named}"
        raise UserError(f"{path}: {noted}, where its weights have {channels} class channels; correct that in its meta.")
    if names and names != classes:
        logger.warning("%s: has %s; its config's num_classes = %d is taken.", path, named, of_config)
    if channels == (classes or _COCO) + 1:
        logger.info("%s: %d class channels; the last one, of the background, is left out", path, channels)
        for name in ("head.cls_logits.weight", "head.cls_logits.bias"):
            weights[name] = weights[name][:-1].clone()
