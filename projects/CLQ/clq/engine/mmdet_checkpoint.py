"""A checkpoint of MMDetection: which detector it holds, and whether it holds all of it."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from clq.config import setup_cfg
from clq.engine.convert import convert
from clq.engine.told_by_weights import body_keys, head_keys
from clq.errors import UserError, blamed_on

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[4]


@dataclass(frozen=True)
class _Row:
    """A row of this project as MMDetection has it.

    Attributes:
        config: ours, with a ResNet-50.
        head: name of the class.
        layers: that its head must have.
        absent: and must not have.
    """

    config: str
    head: str
    layers: frozenset[str]
    absent: frozenset[str] = frozenset()


_ROWS = (
    _Row(
        "configs/ATSS/mmdet_atss_R_50_FPN_1x.yaml",
        "ATSSHead",
        frozenset({"atss_cls", "atss_reg", "atss_centerness"}),
    ),
    _Row(
        "configs/VFNET/mmdet_vfnet_R_50_FPN_1x.yaml",
        "VFNetHead",
        frozenset({"vfnet_cls", "vfnet_reg_refine", "scales_refine"}),
    ),
    _Row(
        "configs/TOOD/mmdet_tood_R_50_FPN_1x.yaml",
        "TOODHead",
        frozenset({"tood_cls", "tood_reg", "inter_convs", "reg_offset_module"}),
    ),
    _Row(
        "configs/GFL/mmdet_gfl_R_50_FPN_1x.yaml",
        "GFLHead",
        frozenset({"gfl_cls", "gfl_reg"}),
        absent=frozenset({"reg_conf"}),
    ),
    _Row(
        "configs/GFLV2/mmdet_gflv2_R_50_FPN_1x.yaml",
        "GFocalHead",  # of its authors' MMDetection; MMDetection itself has none
        frozenset({"gfl_cls", "gfl_reg", "reg_conf"}),
    ),
)
# Settings that no weight shows and our configs do not have, as a config of MMDetection writes them.
_OTHERWISE = (
    r"to_rgb=False",  # also bgr_to_rgb
    r"std=\[1(?:\.0)?,",
    r"style='caffe'",
    r"add_extra_convs='on_(?:input|lateral)'",
    r"octave_base_scale=(?!8\b)[\d.]+",
    r"anchor_type='anchor_based'",
    r"bbox_norm_type='stride'",
)
_OF_DISTRIBUTIONS = "GFLHead", "GFocalHead"
_COCO = 80  # classes


def convert_checkpoint(path: str) -> tuple[dict[str, Tensor], str, dict[str, object]]:
    """A checkpoint file of MMDetection 2.x or 3.x, converted whole.

    Which detector it is, its weights tell and the config that MMDetection keeps in it; a file without one is taken at
    its weights' word, with a warning. The class layer of GFLv2's authors has a channel for the background, which
    nothing reads; it is left out.

    Returns:
        The weights of a :class:`~clq.modeling.detector.CLQ`, the config of its row, and the keys in which this detector
        differs from that config: another body, other widths, another number of classes.

    Raises:
        UserError: no such file, no checkpoint, one that holds more than weights and plain values, of another detector,
            trained in a way that the row's config does not have, or with weights that have no place here, that are
            missing, or that are not finite.
    """
    checkpoint = _read(path)
    weights = _weights(path, checkpoint)
    row = _row_of(path, weights, _config_text(checkpoint))
    converted, unplaced = convert(weights)
    if unplaced:
        raise UserError(f"{path}: {len(unplaced)} of its weights have no place here: {', '.join(unplaced)}.")
    broken = [name for name, value in converted.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"{path}: {len(broken)} of its weights are not finite: {', '.join(broken)}.")
    try:
        if row.head == "GFocalHead":
            _leave_out_background(path, converted, _class_names(checkpoint))
        found = {**body_keys(path, converted), **head_keys(converted, row.head in _OF_DISTRIBUTIONS)}
    except KeyError as e:
        raise UserError(f"{path}: lacks {e.args[0]}, without which its size cannot be told.") from e
    except (ArithmeticError, IndexError, TypeError) as e:  # of a weight with too few dimensions, or empty ones
        raise UserError(f"{path}: its weights are of shapes that no detector's are of.") from e
    standard = _values(setup_cfg(str(ROOT / row.config), ["MODEL.DEVICE", "cpu"]), found)
    keys = {key: value for key, value in found.items() if value != standard[key]}
    _check_whole(path, row, keys, converted)
    return converted, row.config, keys


def _read(path: str) -> dict:
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give a checkpoint of MMDetection.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # reading bytes that are no checkpoint can raise anything
        raise UserError(
            f"{path}: no checkpoint of weights and plain values alone. If you trust it, c = torch.load(..., "
            "weights_only=False), then torch.save({'state_dict': c['state_dict'], 'meta': {k: c['meta'][k] for k in "
            "('config', 'cfg', 'CLASSES', 'dataset_meta') if k in c['meta']}}, ...), and convert that."
        ) from e
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}, not the weights of a detector.")
    return checkpoint


def _weights(path: str, checkpoint: dict) -> dict[str, Tensor]:
    weights = checkpoint.get("state_dict", checkpoint)
    if not isinstance(weights, dict):
        raise UserError(f'{path}: holds a {type(weights).__name__} as "state_dict", not the weights of a detector.')
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: holds {key!r}, which is no weight; give a checkpoint of MMDetection.")
        if key.endswith(".scale") and value.numel() != 1:
            raise UserError(f"{path}: {key} is of shape {list(value.shape)}, not one number as in MMDetection.")
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


def _row_of(path: str, weights: Mapping[str, Tensor], config: str) -> _Row:
    """The row whose head has these layers, provided that the config, if there is one, says the same."""
    layers = {key.split(".")[1] for key in weights if key.startswith("bbox_head.")}
    row = next((r for r in _ROWS if layers >= r.layers and not layers & r.absent), None)
    if row is None:
        has = f"its head has {', '.join(sorted(layers))}" if layers else "it has no bbox_head"
        raise UserError(f"{path}: no ATSS, GFL, GFLv2, VFNet or TOOD of MMDetection ({has}).")
    heads = set(re.findall(r"type='(?:[\w.]+\.)?(\w+Head)'", config))
    if not heads:
        logger.warning("%s: has no config of its training; by its weights it is what %s is.", path, row.config)
    elif row.head not in heads:  # PAA and LAD have ATSS's layers, and scores of another meaning
        raise UserError(f"{path}: is of {', '.join(sorted(heads))}, which this project does not have.")
    for pattern in _OTHERWISE:
        if found := re.search(pattern, config):
            raise UserError(f"{path}: was trained with {found[0]}, which {row.config} does not have.")
    return row


def _leave_out_background(path: str, weights: dict[str, Tensor], classes: list) -> None:
    channels = len(weights["head.cls_logits.weight"])
    if not classes and channels not in (_COCO, _COCO + 1):
        raise UserError(
            f"{path}: has {channels} class channels and no names of classes, so whether the last is the background's "
            "cannot be told; put the names into its meta, as CLASSES."
        )
    if channels == (len(classes) or _COCO) + 1:
        logger.info("%s: %d class channels; the last one, of the background, is left out", path, channels)
        for name in ("head.cls_logits.weight", "head.cls_logits.bias"):
            weights[name] = weights[name][:-1].clone()


def _values(cfg: Mapping, keys: Mapping[str, object]) -> dict[str, object]:
    """The values that a config has under these keys."""
    values = {}
    for key in keys:
        node = cfg
        for part in key.split("."):
            node = node[part]
        values[key] = node
    return values


def _check_whole(path: str, row: _Row, keys: Mapping[str, object], weights: Mapping[str, Tensor]) -> None:
    """Holds names and shapes against those of the detector that the config and these keys make."""
    opts = [word for pair in keys.items() for word in pair]
    cfg = setup_cfg(str(ROOT / row.config), ["MODEL.DEVICE", "cpu", *opts])
    with torch.device("meta"), blamed_on(f"{path}, sizes of its weights"):  # no memory for values
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    missing = wanted.keys() - weights.keys()
    if missing:
        raise UserError(f"{path}: {len(missing)} weights of its detector are missing: {', '.join(sorted(missing))}.")
    for key, value in weights.items():
        if key not in wanted:
            raise UserError(f"{path}: {key} is one weight more than {row.config} has.")
        if tuple(value.shape) != wanted[key]:
            shapes = f"{list(value.shape)} instead of {list(wanted[key])}"
            raise UserError(f"{path}: {key} is of another shape than {row.config} has, {shapes}.")
