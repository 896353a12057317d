"""The input of a detector for an image that comes from no data set."""

from typing import Any

import numpy as np
from detectron2.data.transforms import AugInput, AugmentationList

from clq.data.mapper import as_input, matrix_entry
from clq.errors import UserError


def model_input(image: np.ndarray, augmentations: AugmentationList) -> dict[str, Any]:
    """Resizes an image and makes it an input of Detectron2's models.

    Args:
        image: (H, W, C) uint8 in the channel order of ``INPUT.FORMAT``.
        augmentations: what ``INPUT`` does to an image in testing.

    Returns:
        ``image``, (C, H', W'), ``height`` and ``width`` of the image, and
        :func:`~clq.data.mapper.matrix_entry`.

    Raises:
        UserError: the image is so thin that nothing is left of it at the size that ``INPUT`` asks for.
    """
    height, width = image.shape[:2]
    resized = AugInput(image)
    try:
        transforms = augmentations(resized)
    except ValueError as e:  # Pillow raises it for a height or width of 0
        raise UserError(f"{width} x {height} pixels: too thin for the size that INPUT asks for.") from e
    return {"image": as_input(resized.image), "height": height, "width": width, **matrix_entry(transforms)}
