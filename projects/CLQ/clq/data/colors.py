"""Random changes of the colours of training images."""

import functools

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform


class RandomColor(T.Augmentation):
    """Brightness, contrast and saturation, each scaled by a random factor within 1 -+ ``strength``.

    The product of Detectron2's three transforms (gray values about 0, the image's mean, and each pixel's own gray) is
    one affine map of the channels, which Pillow applies in one pass: without rounding in between, and several times
    faster, so that two loader processes keep up with training.
    """

    GRAY_OF_RGB = (0.299, 0.587, 0.114)  # ITU-R 601, as Detectron2's RandomSaturation

    def __init__(self, strength: float, channels: str):
        """Takes plain values.

        Args:
            strength: 0 to 1.
            channels: order of the channels, "RGB" or "BGR".
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        b, c, s = np.random.uniform(1 - self.strength, 1 + self.strength, 3)
        gray = np.array([self.GRAY_OF_RGB["RGB".index(channel)] for channel in self.channels])
        linear = b * c * (s * np.eye(3) + (1 - s) * gray)  # each row: one output channel from the three
        offset = np.full((3, 1), b * (1 - c) * image.mean())
        matrix = tuple(np.hstack([linear, offset]).ravel())
        return T.PILColorTransform(lambda pil: pil.convert("RGB", matrix))  # "RGB" here: three channels, in any order


def recolored(
    image: np.ndarray, channels: str, shift: float = 0.0, contrast: float = 1.0, saturation: float = 1.0
) -> np.ndarray:
    """The image with changed colours, as real numbers, which may leave the range of the pixels.

    Args:
        image: (H, W, C), 0 to 255.
        channels: order of the channels, "RGB" or "BGR"; others must leave ``saturation`` alone.
        shift: added to every value, as a share of 255.
        contrast: factor of every value, after that.
        saturation: factor of S in HSV, after that.

    Returns:
        (H, W, C) float32 on the scale of the image.
    """
    image = (image.astype(np.float32) / np.float32(255) + np.float32(shift)) * np.float32(contrast)
    if saturation != 1:
        to_hsv, back = {
            "RGB": (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB),
            "BGR": (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR),
        }[channels]
        hsv = cv2.cvtColor(image, to_hsv)
        hsv[..., 1] *= np.float32(saturation)
        image = cv2.cvtColor(hsv, back)
    return image * np.float32(255)


class RandomFloatColor(T.Augmentation):
    """Brightness, contrast and saturation as NanoDet changes them, in this order; see :func:`recolored`."""

    def __init__(
        self,
        brightness: float,
        contrast: tuple[float, float],
        saturation: tuple[float, float],
        prob: float,
        channels: str,
    ):
        """Takes plain values.

        Args:
            brightness: greatest share of 255 that is added or taken away.
            contrast, saturation: least and greatest factor.
            prob: probability of each of the three.
            channels: order of the channels, "RGB" or "BGR".
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        ranges = (-self.brightness, self.brightness), self.contrast, self.saturation
        values = [
            np.random.uniform(*limits) if self._rand_range() < self.prob else neutral
            for limits, neutral in zip(ranges, (0.0, 1.0, 1.0), strict=True)
        ]
        change = functools.partial(
            recolored, channels=self.channels, **dict(zip(("shift", "contrast", "saturation"), values, strict=True))
        )
        return T.ColorTransform(change)
