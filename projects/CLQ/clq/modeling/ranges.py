"""What the numbers of a detector's config may be."""

import math

from detectron2.config import CfgNode

from clq.errors import UserError
from clq.utils.config_tree import get_key

# Keys under MODEL.CLQ, what their numbers must be, and whether one is.
_RANGES = {
    "ANCHOR_SCALE": ("above 0", lambda v: v > 0),
    "ANCHOR_OFFSET": ("at least 0 and below 1", lambda v: 0 <= v < 1),
    "NUM_CONVS": ("at least 0", lambda v: v >= 0),
    "CONV_DIM": ("at least 1", lambda v: v >= 1),
    "PRIOR_PROB": ("above 0 and below 1", lambda v: 0 < v < 1),
    "TOPK": ("at least 1", lambda v: v >= 1),
    "ASSIGN.WARMUP": ("within 0 and 1", lambda v: 0 <= v <= 1),
    "ASSIGN.TASK_TOPK": ("at least 1", lambda v: v >= 1),
    "ASSIGN.TASK_ALPHA": ("above 0", lambda v: v > 0),
    "ASSIGN.TASK_BETA": ("at least 0", lambda v: v >= 0),
    "ASSIGN.SIMOTA_RADIUS": ("above 0", lambda v: v > 0),
    "ASSIGN.SIMOTA_CANDIDATES": ("at least 1", lambda v: v >= 1),
    "ASSIGN.SIMOTA_IOU_WEIGHT": ("at least 0", lambda v: v >= 0),
    "ASSIGN.MAX_IOU_THRESHOLDS": (
        "two numbers above 0 and at most 1, the lower one first",
        lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1,
    ),
    "BOX.WEIGHTS": ("four numbers above 0", lambda v: len(v) == 4 and all(w > 0 for w in v)),
    "BOX.REG_MAX": ("at least 1", lambda v: v >= 1),
    "BOX.WEIGHT_FLOOR": ("at least 0", lambda v: v >= 0),
    "BOX.LOSS_WEIGHT": ("at least 0", lambda v: v >= 0),
    "BOX.DFL_WEIGHT": ("at least 0", lambda v: v >= 0),
    "CLS.BETA": ("at least 1", lambda v: v >= 1),
    "CLS.FOCAL_ALPHA": ("within 0 and 1", lambda v: 0 <= v <= 1),
    "CLS.FOCAL_GAMMA": ("at least 0", lambda v: v >= 0),
    "CLS.VFL_ALPHA": ("at least 0", lambda v: v >= 0),
    "CLS.VFL_GAMMA": ("at least 0", lambda v: v >= 0),
    "REFINE.COARSE_LOSS_WEIGHT": ("at least 0", lambda v: v >= 0),
    "QUALITY.LOSS_WEIGHT": ("at least 0", lambda v: v >= 0),
    "ALIGN.OFFSET_GROUPS": ("at least 1", lambda v: v >= 1),
    "ALIGN.GRADIENT": ("within 0 and 1", lambda v: 0 <= v <= 1),
    "SCORE_THRESH": ("below 1", lambda v: v < 1),
    "TOPK_CANDIDATES": ("at least 1", lambda v: v >= 1),
    "NMS_THRESH": ("at least 0", lambda v: v >= 0),
}


def check_ranges(cfg: CfgNode) -> None:
    """Checks the numbers of the detector, which a config can set to anything of their type.

    Raises:
        UserError: the first that is out of its range.
    """
    for key in _RANGES:
        value = get_key(cfg.MODEL.CLQ, key)
        if what := broken_range(key, value):
            raise UserError(f"MODEL.CLQ.{key} {value}: must be {what}, and finite.")
    if cfg.MODEL.FPN.OUT_CHANNELS < 1:
        raise UserError(f"MODEL.FPN.OUT_CHANNELS {cfg.MODEL.FPN.OUT_CHANNELS}: must be at least 1.")
    if cfg.SOLVER.ACCUMULATE < 1:
        raise UserError(f"SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE}: must be at least 1.")
    if cfg.TEST.DETECTIONS_PER_IMAGE < 1:
        raise UserError(f"TEST.DETECTIONS_PER_IMAGE {cfg.TEST.DETECTIONS_PER_IMAGE}: must be at least 1.")


def broken_range(key: str, value: object) -> str | None:
    """What the value of a key under ``MODEL.CLQ`` must be, beside finite, if it is not; otherwise None."""
    what, holds = _RANGES[key]
    numbers = value if isinstance(value, (list, tuple)) else [value]
    return None if value is not None and all(map(math.isfinite, numbers)) and holds(value) else what
