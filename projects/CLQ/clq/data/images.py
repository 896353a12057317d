"""Reading image files, in training, evaluation and prediction alike."""

import numpy as np
from detectron2.data import detection_utils as utils
from PIL import Image

from clq.errors import UserError


def read_image(path: str, image_format: str) -> np.ndarray:
    """Any image file as (H, W, C) uint8, upright (EXIF) and in the order of ``image_format`` (RGB, BGR; L: C is 1).

    Grey images of 16 bits keep their upper 8, where Detectron2's reader would make everything above 255 white.

    Raises:
        UserError: the file cannot be opened, is no image or is damaged.
    """
    try:
        with Image.open(path) as f:
            deep = f.mode.startswith("I")
        if not deep:
            return utils.read_image(path, image_format)
        grey = np.clip(utils.read_image(path).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
    except Exception as e:  # a damaged file can raise anything
        reason = getattr(e, "strerror", None) or " ".join(str(e).split())
        raise UserError(f"image {path}: cannot be read ({reason}); replace it or take it out.") from e
    return np.repeat(grey[:, :, None], 1 if image_format == "L" else 3, axis=2)
