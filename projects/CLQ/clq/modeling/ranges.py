"""Checks the values of a detector's config keys before the detector is built."""

from detectron2.config import CfgNode

from clq.config.key import Key, Number
from clq.config.table import check_keys
from clq.errors import UserError
from clq.utils.config_tree import get_key

_NUM_GROUPS = 32  # of group normalization, as in detectron2.layers.get_norm
# Detectron2's own keys that a detector reads, and that Detectron2 does not check.
_DETECTRON2_KEYS = (
    Key("MODEL.FPN.OUT_CHANNELS", 256, "The number of channels of each level of the pyramid.", Number(minimum=1)),
    Key("TEST.DETECTIONS_PER_IMAGE", 100, "The largest number of detections of an image.", Number(minimum=1)),
)


def check_ranges(cfg: CfgNode) -> None:
    """Checks the values of all keys that a detector is built from.

    Raises:
        UserError: the first key whose value is not accepted, or does not fit to the other keys.
    """
    check_keys(cfg, "MODEL.CLQ", "SOLVER.ACCUMULATE")
    for key in _DETECTRON2_KEYS:
        key.check(get_key(cfg, key.path))
    if cfg.MODEL.CLQ.TOWERS == "interactive" and not cfg.MODEL.CLQ.NUM_CONVS:
        raise UserError("MODEL.CLQ.NUM_CONVS 0: must be at least 1 with MODEL.CLQ.TOWERS interactive.")
    if cfg.MODEL.CLQ.NORM == "GN":
        _check_group_norm(cfg)


def _check_group_norm(cfg: CfgNode) -> None:
    """Checks that group normalization can divide the channels of all layers that it follows."""
    c = cfg.MODEL.CLQ
    # The first depthwise convolution, and star's convolution without towers, keep the channels of the pyramid.
    on_pyramid = c.CONV == "depthwise" if c.NUM_CONVS else c.REFINE.NAME == "star"
    widths = (
        ("MODEL.CLQ.CONV_DIM", c.CONV_DIM, c.NUM_CONVS > 0),
        ("MODEL.FPN.OUT_CHANNELS", cfg.MODEL.FPN.OUT_CHANNELS, on_pyramid),
    )
    for path, width, is_normalized in widths:
        if is_normalized and width % _NUM_GROUPS:
            raise UserError(
                f"{path} {width}: must be a multiple of {_NUM_GROUPS}, the number of groups of MODEL.CLQ.NORM GN; "
                "change one of the two."
            )
