"""What a file needs besides its graph to be used: the classes, and how an image becomes the graph's input."""

import json

from detectron2.config import CfgNode

import clq
from clq.data.categories import Categories
from clq.errors import UserError
from clq.modeling.meta_arch.clq import CLQ


def make_metadata(cfg: CfgNode, model: CLQ, categories: Categories, *, alignment: str, raw: bool) -> dict[str, str]:
    """Strings by name; lists, numbers and ``resize`` are json.

    ``resize`` is ``{"mode": "shortest_edge", "size": S, "max_size": M}``, which scales the shorter side to S unless the
    longer one would exceed M, ``{"mode": "letterbox", "size": [height, width]}``, which centres the scaled image in a
    black frame, or ``{"mode": "none"}``.

    Args:
        cfg: config of the detector.
        model: the detector.
        categories: its classes.
        alignment: form of the deformable convolutions, see :class:`~clq.export.graph.DetectorGraph`.
        raw: whether the outputs are raw.
    """
    selector = model.selector
    values = {
        "clq_version": clq.__version__,
        "classes": list(categories.names),
        "category_ids": list(categories.ids),
        "channels": cfg.INPUT.FORMAT,
        "mean": list(cfg.MODEL.PIXEL_MEAN),
        "std": list(cfg.MODEL.PIXEL_STD),
        "resize": _resize(cfg),
        "size_divisibility": max(model.backbone.size_divisibility, 1),
        "raw": raw,
        "precision": "float32",
        "score_threshold": selector.score_thresh,
        "nms_threshold": selector.nms_thresh,
        "detections_per_image": selector.max_detections,
        "quality": cfg.MODEL.CLQ.QUALITY.NAME,
        "alignment": alignment if cfg.MODEL.CLQ.ALIGN.NAME != "none" else "none",
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def _resize(cfg: CfgNode) -> dict:
    if cfg.INPUT.LETTERBOX.ENABLED:
        return {"mode": "letterbox", "size": list(cfg.INPUT.LETTERBOX.SIZE)}
    size = cfg.INPUT.MIN_SIZE_TEST
    if not isinstance(size, int):
        raise UserError(f"INPUT.MIN_SIZE_TEST {size}: an export needs one size.")
    if not size:
        return {"mode": "none"}
    return {"mode": "shortest_edge", "size": size, "max_size": cfg.INPUT.MAX_SIZE_TEST}
