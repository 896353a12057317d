"""Translates how MMDetection's config tests (selection of detections, image size) to config keys of this project."""

import logging
import math
import re

from clq.checkpoint.foreign import brief
from clq.checkpoint.mmdet_config import test_places
from clq.checkpoint.mmdet_config_text import Unread, dicts_in
from clq.config import KEYS
from clq.errors import UserError

logger = logging.getLogger(__name__)

_ALL = 1_000_000_000  # stands for no limit, which is -1 in MMDetection; this project's keys need a number
_SCALES = "img_scale", "scale"  # names of the image size in 2.x and in 3.x
_NMS = {"iou_threshold", "iou_thr", "split_thr", "class_agnostic", "max_num"}  # settings of plain NMS


def selection_keys(path: str, config: dict) -> dict[str, object]:
    """Translates ``test_cfg`` and the size of the test images of a config to keys of this project.

    Args:
        path: path of the checkpoint, for messages.
        config: MMDetection's config, see :func:`~clq.checkpoint.mmdet_config_text.read_config`.

    Returns:
        Config keys with their values, for what the config has.

    Raises:
        UserError: the config selects detections in a way that this project does not have.
    """
    keys = _size_keys(path, config)
    # Before 2.7, test_cfg is beside the model. In 3.x, a test_cfg beside the model describes the loop of the test.
    test = config.get("model", {}).get("test_cfg", config.get("test_cfg"))
    if isinstance(test, Unread):
        raise UserError(_refusal(path, "test_cfg", test, "its value"))
    if not isinstance(test, dict) or not {"nms", "score_thr"} & set(test):
        return keys
    if _number(path, "min_bbox_size", test.get("min_bbox_size", 0)) > 0:
        raise UserError(_refusal(path, "min_bbox_size", test["min_bbox_size"], "0"))
    keys["MODEL.CLQ.SCORE_THRESH"] = float(_number(path, "score_thr", test.get("score_thr", 0)))
    keys["MODEL.CLQ.TOPK_CANDIDATES"] = _limit(path, "nms_pre", test.get("nms_pre", -1))
    keys["TEST.DETECTIONS_PER_IMAGE"] = _limit(path, "max_per_img", test.get("max_per_img", -1))
    nms = test.get("nms")
    if nms is not None:
        keys["MODEL.CLQ.NMS_THRESH"] = _nms_threshold(path, nms)
    for setting, key in (("score_thr", "SCORE_THRESH"), ("nms.iou_threshold", "NMS_THRESH")):
        value = keys.get(f"MODEL.CLQ.{key}", 0.0)
        if what := KEYS[f"MODEL.CLQ.{key}"].requirement(value):
            raise UserError(
                f"{path}: its config tests with {setting} = {value}, which must be {what}; correct it in the config in "
                "its meta."
            )
    return keys


def _nms_threshold(path: str, nms: object) -> float:
    """The IoU threshold of plain, class-wise NMS."""
    if not isinstance(nms, dict) or nms.get("type", "nms") != "nms":
        raise UserError(_refusal(path, "nms", nms, "dict(type='nms', ...)"))
    if nms.keys() - _NMS - {"type"} or nms.get("class_agnostic") or nms.get("max_num", -1) not in (-1, 0):
        raise UserError(_refusal(path, "nms", nms, "only an iou_threshold"))
    return float(_number(path, "nms.iou_threshold", nms.get("iou_threshold", nms.get("iou_thr"))))


def _size_keys(path: str, config: dict) -> dict[str, object]:
    """The keys of the first resizing of the test images; (1333, 800) bounds the long and the short side."""
    steps = [step for step in _steps(path, config) if re.search(r"Resize|FlipAug$|TestTimeAug$", _kind(step))]
    augmented = [f"{x} = {brief(step[x])}" for step in steps for x in ("flip", *_SCALES) if _augments(x, step.get(x))]
    if augmented or any(_kind(step) == "TestTimeAug" for step in steps):
        logger.warning(
            "%s: its config tests with test-time augmentation (%s), with which its published figures may have been "
            "measured; the printed command tests without it, at the first size. Enable TEST.AUG to augment.",
            path,
            ", ".join(augmented) or "TestTimeAug",
        )
    keys: dict[str, object] = {}
    for step in steps:
        # A Resize keeps the ratio by default in 2.x, but not in 3.x, where the size is called scale.
        ratio = step.get("keep_ratio", "scale" not in step or _kind(step) != "Resize")
        if ratio is not True:
            raise UserError(_refusal(path, "keep_ratio", ratio, "True"))
        keys = keys or _sizes(path, step)
    return keys


def _steps(path: str, config: dict) -> list[dict]:
    """All groups of settings that prepare the test images.

    Raises:
        UserError: a step is an expression whose value is not known.
    """
    places = test_places(config)
    first = places.pop("test_pipeline")  # data.test of 2.x uses this name
    steps = list(dicts_in([*places.values(), first]))
    nodes = [*places.values(), first, *(step.get(x) for step in steps for x in ("dataset", "pipeline", "transforms"))]
    for node in nodes:
        for x in node if isinstance(node, list) else [node]:
            if isinstance(x, Unread):
                raise UserError(_refusal(path, "a step", x, "its value"))
    return steps


def _kind(step: dict) -> str:
    """The class of a step without its package."""
    return str(step.get("type", "")).rsplit(".", 1)[-1]


def _augments(setting: str, value: object) -> bool:
    """Whether a setting asks for several versions of an image, by flips or several scales."""
    if setting == "flip":
        return bool(value)
    return isinstance(value, list) and len(value) > 1 and all(isinstance(scale, list) for scale in value)


def _sizes(path: str, step: dict) -> dict[str, object]:
    """The keys of the image size of a step, if the step has one."""
    if step.get("scale_factor") is not None:
        raise UserError(_refusal(path, "scale_factor", step["scale_factor"], "scale=(1333, 800)"))
    setting = next((x for x in _SCALES if step.get(x) is not None), None)
    if setting is None:
        return {}
    scale = step[setting]
    if isinstance(scale, list) and (len(scale) == 1 or _augments(setting, scale)):
        scale = scale[0]
    if _kind(step) == "ResizeShortestEdge":
        scale = [scale, step.get("max_size")]
    elif isinstance(scale, int):
        scale = [scale, scale]
    if not (isinstance(scale, list) and len(scale) == 2 and all(type(x) is int and x > 0 for x in scale)):
        raise UserError(_refusal(path, setting, step[setting], "(1333, 800), or the two sides that were used,"))
    return {"INPUT.MIN_SIZE_TEST": min(scale), "INPUT.MAX_SIZE_TEST": max(scale)}


def _limit(path: str, setting: str, value: object) -> int:
    """A whole number that limits something; :data:`_ALL` for no limit."""
    number = _number(path, setting, value)
    if number != int(number):
        raise UserError(_refusal(path, setting, value, "a whole number"))
    return int(number) if 0 < number < _ALL else _ALL


def _number(path: str, setting: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(_refusal(path, setting, value, "a number"))
    return value


def _refusal(path: str, setting: str, theirs: object, ours: str) -> str:
    return (
        f"{path}: its config tests with {setting} = {brief(theirs)}, which this project does not support; write {ours} "
        "into the config in its meta to test it in that way."
    )
