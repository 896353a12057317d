"""The image reader of training, evaluation and prediction."""

import numpy as np
from detectron2.data import detection_utils as utils
from PIL import Image

from clq.errors import UserError


def read_image(path: str, image_format: str) -> np.ndarray:
    """Reads an image file and turns it upright according to its EXIF data.

    Grey images with 16 bits keep their upper 8 bits. Detectron2's reader would make every value above 255 white.

    Args:
        path: path of the file.
        image_format: order of the channels, "RGB" or "BGR", or "L" for a single grey channel.

    Returns:
        (H, W, C) uint8, where C is 3, or 1 for "L".

    Raises:
        UserError: the file cannot be opened, is not an image or is damaged.
    """
    try:
        with Image.open(path) as f:
            deep = f.mode.startswith("I")
        if not deep:
            return utils.read_image(path, image_format)
        grey = np.clip(utils.read_image(path).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
    except Exception as e:  # a damaged file can raise almost any exception
        reason = getattr(e, "strerror", None) or " ".join(str(e).split())
        raise UserError(f"image {path}: cannot be read ({reason}); replace or remove it.") from e
    return np.repeat(grey[:, :, None], 1 if image_format == "L" else 3, axis=2)
