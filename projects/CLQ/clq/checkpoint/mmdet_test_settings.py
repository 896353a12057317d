"""How the config that MMDetection keeps in a checkpoint selects detections, as keys of this project."""

import math

from clq.checkpoint.mmdet_config import dicts_in
from clq.errors import UserError

_ALL = 1_000_000_000  # stands for -1 there, no limit; a limit is a number here
_NMS = {"iou_threshold", "iou_thr", "split_thr", "class_agnostic", "max_num"}  # settings that plain NMS may have


def selection_keys(path: str, config: dict) -> dict[str, object]:
    """Our keys with the values of a config's ``test_cfg`` and of the size of its test images, where it has them.

    Args:
        path: of the checkpoint, for errors.
        config: as :func:`~clq.checkpoint.mmdet_config.read_config` returns it.

    Raises:
        UserError: a way of selecting detections that this project does not have.
    """
    keys = _size_keys(path, config)
    # Beside the model before 2.7; in 3.x, what is there is the test's loop.
    test = config.get("model", {}).get("test_cfg", config.get("test_cfg"))
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
    return keys


def _nms_threshold(path: str, nms: object) -> float:
    if not isinstance(nms, dict) or nms.get("type", "nms") != "nms":
        raise UserError(_refusal(path, "nms", nms, "dict(type='nms', ...)"))
    if nms.keys() - _NMS - {"type"} or nms.get("class_agnostic") or nms.get("max_num", -1) not in (-1, 0):
        raise UserError(_refusal(path, "nms", nms, "an iou_threshold alone"))
    return float(_number(path, "nms.iou_threshold", nms.get("iou_threshold", nms.get("iou_thr"))))


def _size_keys(path: str, config: dict) -> dict[str, object]:
    """Of the first resizing of the test's pipeline to one size: (1333, 800) bounds the long and the short side."""
    data, loader = config.get("data"), config.get("test_dataloader")
    test = data.get("test") if isinstance(data, dict) else loader
    steps = list(dicts_in([test, config.get("test_pipeline")]))
    for step in steps:
        scale = step.get("img_scale", step.get("scale"))
        if not (isinstance(scale, list) and len(scale) == 2 and all(isinstance(x, int) and x > 0 for x in scale)):
            continue
        if not all(x.get("keep_ratio", True) is True for x in steps):
            raise UserError(_refusal(path, "keep_ratio", False, "True"))
        return {"INPUT.MIN_SIZE_TEST": min(scale), "INPUT.MAX_SIZE_TEST": max(scale)}
    return {}


def _limit(path: str, setting: str, value: object) -> int:
    number = int(_number(path, setting, value))
    return number if number > 0 else _ALL


def _number(path: str, setting: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(_refusal(path, setting, value, "a number"))
    return value


def _refusal(path: str, setting: str, theirs: object, ours: str) -> str:
    return (
        f"{path}: its config tests with {setting} = {theirs!r}, which this project does not have; write {ours} into "
        "the config in its meta to convert it for this project's way."
    )
