"""The images that a predictor takes: files, PIL images, arrays and tensors."""

import os
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from clq.data.images import read_image
from clq.errors import UserError

ImageLike = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor

_ARRAY = "an array must be (height, width, 3) uint8 in RGB"
_TENSOR = "a tensor must be (3, height, width) uint8 in RGB"
_PIL_MODES = "1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"  # 8 bits in a channel


def to_rgb_array(image: ImageLike, options: dict[str, Any]) -> tuple[np.ndarray, str | None]:
    """Makes an RGB array of an image.

    Args:
        image: path of a file; PIL image of 8 bits, which is turned upright by its EXIF data; RGB array (H, W, 3) uint8;
            or RGB tensor (3, H, W) uint8, on any device.
        options: keyword arguments of :func:`~clq.data.images.read_image`.

    Returns:
        The image, (H, W, 3) uint8 RGB, and its path, or None if it is no file.

    Raises:
        UserError: it is something else; the message names what to pass.
        ImageError: the file cannot be used.
    """
    if isinstance(image, (str, os.PathLike)):
        path = os.path.expanduser(os.fspath(image))
        return read_image(path, "RGB", **options), path
    if isinstance(image, Image.Image):
        if image.mode not in _PIL_MODES:
            raise UserError(f"PIL image of mode {image.mode}: pass its path, or an image with 8 bits in a channel.")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB")), None
    if isinstance(image, np.ndarray):
        _check(f"array of shape {image.shape} and type {image.dtype}", image.shape, str(image.dtype), _ARRAY, 2)
        return image, None
    if isinstance(image, torch.Tensor):
        dtype = str(image.dtype).removeprefix("torch.")
        _check(f"tensor of shape {tuple(image.shape)} and type {dtype}", tuple(image.shape), dtype, _TENSOR, 0)
        return image.permute(1, 2, 0).cpu().numpy(), None
    raise UserError(
        f"{type(image).__name__}: pass a path, a PIL image, an RGB array, an RGB tensor, or a list of these."
    )


def _check(what: str, shape: tuple[int, ...], dtype: str, wanted: str, axis: int) -> None:
    """Checks shape and type.

    Args:
        what: the image, for messages.
        shape: its shape.
        dtype: its type.
        wanted: what it must be.
        axis: the axis of the channels, 2 or 0.

    Raises:
        UserError: it cannot be used.
    """
    other = 2 - axis
    if len(shape) == 4:
        fix = "pass a list of images"
    elif len(shape) == 2:
        fix = "repeat grey values in three channels"
    elif len(shape) != 3:
        fix = "pass one image"
    elif 0 in shape:
        fix = "it has no pixels"
    elif shape[axis] != 3 and shape[other] == 3:
        fix = f"the channels come {'last' if axis == 2 else 'first'}: {_REORDER[axis]}"
    elif shape[axis] == 4:
        fix = "drop the fourth channel, which is transparency"
    elif shape[axis] != 3:
        fix = "make it three channels"
    elif dtype != "uint8":
        fix = "scale its values to 0 to 255 and convert them"
    else:
        return
    raise UserError(f"{what}: {wanted}; {fix}.")


_REORDER = {2: "image.transpose(1, 2, 0)", 0: "image.permute(2, 0, 1)"}
