"""Random changes of the colours of training images."""

import functools

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform


class RandomColor(T.Augmentation):
    """Scales brightness, contrast and saturation, each by a random factor from 1 - ``strength`` to 1 + ``strength``.

    Detectron2 has a transform for each: they scale the distance of a pixel from 0, from the image's mean and from the
    pixel's own grey value. Their product is one affine map of the channels, which Pillow applies in one pass. This
    avoids rounding in between and is several times faster, so that two loader processes keep up with training.
    """

    GRAY_OF_RGB = (0.299, 0.587, 0.114)  # ITU-R 601, as in Detectron2's RandomSaturation

    def __init__(self, strength: float, channels: str):
        """Initializes the augmentation.

        Args:
            strength: largest difference of a factor from 1, within 0 and 1.
            channels: order of the channels, "RGB" or "BGR".
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        b, c, s = np.random.uniform(1 - self.strength, 1 + self.strength, 3)
        gray = np.array([self.GRAY_OF_RGB["RGB".index(channel)] for channel in self.channels])
        linear = b * c * (s * np.eye(3) + (1 - s) * gray)  # each row maps the three channels to one output channel
        offset = np.full((3, 1), b * (1 - c) * image.mean())
        matrix = tuple(np.hstack([linear, offset]).ravel())
        # To Pillow, "RGB" means three channels; it does not care about their order.
        return T.PILColorTransform(lambda pil: pil.convert("RGB", matrix))


def recolored(
    image: np.ndarray, channels: str, shift: float = 0.0, contrast: float = 1.0, saturation: float = 1.0
) -> np.ndarray:
    """Changes the colours of an image: first its brightness, then its contrast, then its saturation.

    Args:
        image: (H, W, C) with values from 0 to 255.
        channels: order of the channels, "RGB" or "BGR". Any other order requires that ``saturation`` is 1.
        shift: fraction of 255 that is added to every value.
        contrast: factor that every value is multiplied by.
        saturation: factor that S in HSV is multiplied by.

    Returns:
        (H, W, C) float32 on the scale of the input. Values may lie below 0 or above 255.
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
    """Changes brightness, contrast and saturation at random as NanoDet does; see :func:`recolored`."""

    def __init__(
        self,
        *,
        brightness: float,
        contrast: tuple[float, float],
        saturation: tuple[float, float],
        prob: float,
        channels: str,
    ):
        """Initializes the augmentation.

        Args:
            brightness: largest fraction of 255 that is added to or subtracted from every value.
            contrast: lowest and highest factor of the contrast.
            saturation: lowest and highest factor of the saturation.
            prob: probability with which each of the three is changed; they are drawn independently.
            channels: order of the channels, "RGB" or "BGR".
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        shift = self._draw(-self.brightness, self.brightness, neutral=0.0)
        contrast = self._draw(self.contrast[0], self.contrast[1], neutral=1.0)
        saturation = self._draw(self.saturation[0], self.saturation[1], neutral=1.0)
        return T.ColorTransform(
            functools.partial(recolored, channels=self.channels, shift=shift, contrast=contrast, saturation=saturation)
        )

    def _draw(self, low: float, high: float, neutral: float) -> float:
        """With probability ``prob`` a random value between ``low`` and ``high``, otherwise ``neutral``."""
        return np.random.uniform(low, high) if self._rand_range() < self.prob else neutral
