"""An image with one painted box, and configs for it, shared by the tests of this folder."""

import numpy as np
from clq.config import setup_cfg

BOX = (60, 30, 110, 50)  # XYXY, in an image of 160 x 120 (width x height)
LETTERBOX = ["MODEL.META_ARCHITECTURE", "CLQ", "INPUT.LETTERBOX.ENABLED", True, "INPUT.LETTERBOX.SIZE", [80, 80]]


def painted():
    """A black image, (120, 160, 3) uint8, in which the pixels of BOX are white."""
    image = np.zeros((120, 160, 3), np.uint8)
    image[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    return image


def config(*opts, flip="none", **aug):
    """A config without resizing; ``aug`` gives keys under INPUT.AUG."""
    opts = ["INPUT.MIN_SIZE_TRAIN", "(0,)", "INPUT.FORMAT", "RGB", "INPUT.RANDOM_FLIP", flip, *opts]
    for key, value in aug.items():
        opts += [f"INPUT.AUG.{key}", str(value)]
    return setup_cfg(None, opts)
