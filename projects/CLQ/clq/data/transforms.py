"""Geometric transforms: the random ones of training, and the letterbox, which training and testing share.

Coordinates are in pixels, as in Detectron2: an image of width W extends from 0 to W, and the centre of its first pixel
is at 0.5.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image


@dataclass(frozen=True)
class Zoom:
    """The distribution of a random zoom factor.

    Attributes:
        scale: lowest and highest factor, above 0.
        sampling: name of the distribution, "log" (halving is as likely as doubling) or "uniform".
        prob: probability of drawing a factor at all; otherwise it is 1.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    sampling: str = "log"
    prob: float = 1.0

    def draw(self) -> float:
        """Draws a random factor."""
        if np.random.uniform() >= self.prob:
            return 1.0
        if self.sampling == "uniform":
            return np.random.uniform(*self.scale)
        return np.exp(np.random.uniform(*np.log(self.scale)))


class ResizedWindow(Transform):
    """Resizes an image and keeps one window of the result; nothing outside the window is computed.

    The window is interpolated from the original pixels in one step (bilinear, antialiased). Time and memory depend only
    on the size of the window and of the part of the image that it shows. The window is padded with grey where it
    extends beyond the right or lower border of the resized image.
    """

    PAD_VALUE = 128  # grey, as in Detectron2's FixedSizeCrop

    def __init__(
        self,
        *,
        source_size: tuple[int, int],
        resized_size: tuple[int, int],
        corner: tuple[int, int],
        size: tuple[int, int],
    ):
        """Initializes the transform. All values are in whole pixels.

        Args:
            source_size: (height, width) of the image.
            resized_size: (height, width) that the whole image is resized to.
            corner: (y, x) of the upper left corner of the window in the resized image.
            size: (height, width) of the window, including its padding.
        """
        super().__init__()
        self._set_attributes(locals())

    def _filled_size(self) -> tuple[int, int]:
        """(height, width) of the part of the window that shows the image rather than padding."""
        (new_h, new_w), (y, x), (out_h, out_w) = self.resized_size, self.corner, self.size
        return min(out_h, new_h - y), min(out_w, new_w - x)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        (h, w), (new_h, new_w), (y, x), (out_h, out_w) = self.source_size, self.resized_size, self.corner, self.size
        tall, wide = self._filled_size()
        rows, top, bottom = _source_pixels(start=y, length=tall, step=h / new_h, limit=h)
        columns, left, right = _source_pixels(start=x, length=wide, step=w / new_w, limit=w)
        part = img[rows, columns]  # Pillow copies its input, so it gets only the pixels that it reads
        source = Image.fromarray(part[..., 0] if part.shape[2:] == (1,) else part)
        resized = source.resize((wide, tall), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        window = np.asarray(resized).reshape(tall, wide, *img.shape[2:])
        padding = [(0, out_h - tall), (0, out_w - wide), (0, 0)][: img.ndim]
        return np.pad(window, padding, constant_values=self.PAD_VALUE)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        (h, w), (new_h, new_w), (y, x) = self.source_size, self.resized_size, self.corner
        return coords * [new_w / w, new_h / h] - [x, y]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Takes the nearest pixels and pads with 0."""
        (h, w), (new_h, new_w), (y, x), (out_h, out_w) = self.source_size, self.resized_size, self.corner, self.size
        tall, wide = self._filled_size()
        rows = (y + np.arange(tall) + 0.5) * h // new_h
        columns = (x + np.arange(wide) + 0.5) * w // new_w
        window = segmentation[np.ix_(rows.astype(int), columns.astype(int))]
        return np.pad(window, [(0, out_h - tall), (0, out_w - wide)])


def _source_pixels(*, start: int, length: int, step: float, limit: int) -> tuple[slice, float, float]:
    """Finds the pixels of an image from which one axis of a resized window is interpolated.

    Args:
        start: start of the window, in pixels of the resized image.
        length: length of the window, in pixels of the resized image.
        step: size of one pixel of the resized image, in pixels of the image.
        limit: length of the image in pixels.

    Returns:
        The pixels that the filter reads, and the begin and end of the window relative to the first of them.
    """
    begin, end = start * step, min((start + length) * step, limit)
    reach = math.ceil(max(step, 1)) + 1  # radius of the bilinear filter, plus one pixel to be safe
    first = max(0, math.floor(begin) - reach)
    return slice(first, math.ceil(end) + reach), begin - first, end - first


class RandomZoomCrop(T.Augmentation):
    """Resizes an image, zooms by a random factor and keeps a random window, all in one :class:`ResizedWindow`."""

    def __init__(self, resize: T.ResizeShortestEdge, *, zoom: Zoom, size: tuple[int, int] | None):
        """Initializes the augmentation.

        Args:
            resize: augmentation that draws the size to which the zoom factor is relative.
            zoom: distribution of the zoom factor.
            size: (height, width) of the output in pixels, padded on the right and below; None keeps the whole image.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draws a random transform for an image of this size.

        Raises:
            ValueError: the image is so thin that nothing would be left of it.
        """
        height, width = image.shape[:2]
        resize = self.resize.get_transform(image)
        new_h, new_w = (height, width) if isinstance(resize, NoOpTransform) else (resize.new_h, resize.new_w)
        if min(new_h, new_w) < 1:
            raise ValueError("height and width must be > 0")
        zoom = self.zoom.draw()
        new_h, new_w = max(1, round(new_h * zoom)), max(1, round(new_w * zoom))
        out_h, out_w = self.size or (new_h, new_w)
        y = np.random.randint(max(0, new_h - out_h) + 1)
        x = np.random.randint(max(0, new_w - out_w) + 1)
        return ResizedWindow(
            source_size=(height, width), resized_size=(new_h, new_w), corner=(y, x), size=(out_h, out_w)
        )


class Warp(Transform):
    """Maps the image into a black frame with an affine transform. OpenCV interpolates, without antialiasing."""

    def __init__(self, matrix: np.ndarray, source_size: tuple[int, int], size: tuple[int, int]):
        """Initializes the transform.

        Args:
            matrix: (3, 3) float64, which maps (x, y, 1) in the image to (x, y, 1) in the frame. Boxes are mapped in the
                coordinates of this module. OpenCV has the centre of the first pixel at 0, so that with a scale of r an
                object lies (1 - r) / 2 pixels to the right of and below its box, as it does in NanoDet.
            source_size: (height, width) of the image.
            size: (height, width) of the frame.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, flags: int = cv2.INTER_LINEAR) -> np.ndarray:
        if img.ndim == 3 and img.strides[2] < 0:  # BGR as a view of RGB, which takes longer to copy than to warp
            return self.apply_image(img[:, :, ::-1], flags)[:, :, ::-1]
        warped = cv2.warpPerspective(np.ascontiguousarray(img), self.matrix, self.size[::-1], flags=flags)
        return warped.reshape(*self.size, *img.shape[2:])

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords @ self.matrix[:2, :2].T + self.matrix[:2, 2]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, cv2.INTER_NEAREST)

    def inverse(self) -> Transform:
        return Warp(np.linalg.inv(self.matrix), self.size, self.source_size)


def letterbox_matrix(
    source_size: tuple[int, int],
    size: tuple[int, int],
    *,
    zoom: float = 1.0,
    flipped: bool = False,
    center: tuple[float, float] | None = None,
) -> np.ndarray:
    """Computes the matrix of a :class:`Warp` that centres the image in the frame, as large as the frame allows.

    The image may be zoomed, flipped and moved before it is fitted into the frame.

    Args:
        source_size: (height, width) of the image.
        size: (height, width) of the frame.
        zoom: factor by which the image is enlarged about its centre.
        flipped: whether the image is flipped horizontally.
        center: (x, y) that the centre of the image is moved to, in pixels of the image; None leaves it in place.

    Returns:
        (3, 3) float64.
    """
    (h, w), (new_h, new_w) = source_size, size
    to_origin = np.array([[1, 0, -w / 2], [0, 1, -h / 2], [0, 0, 1]])
    x, y = center or (w / 2, h / 2)
    augment = np.array([[1, 0, x], [0, 1, y], [0, 0, 1]]) @ (
        np.diag([-1.0 if flipped else 1.0, 1, 1]) @ (np.diag([zoom, zoom, 1]) @ to_origin)
    )
    ratio = min(new_w / w, new_h / h)
    fit = np.array([[1, 0, new_w / 2], [0, 1, new_h / 2], [0, 0, 1]]) @ np.diag([ratio, ratio, 1]) @ to_origin
    return fit @ augment


class Letterbox(T.Augmentation):
    """Centres the image in a black frame. In training, the same warp also zooms, flips and shifts it."""

    def __init__(
        self,
        size: tuple[int, int],
        *,
        zoom: Zoom = Zoom(),
        flip_prob: float = 0.0,
        shift: float = 0.0,
        shift_prob: float = 1.0,
    ):
        """Initializes the augmentation. The defaults are those of testing.

        Args:
            size: (height, width) of the frame in pixels.
            zoom: distribution of the zoom factor.
            flip_prob: probability of flipping the image horizontally.
            shift: maximum distance by which the centre of the image is moved, as a fraction of its width and height.
            shift_prob: probability of moving it.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        zoom, flipped, center = self.zoom.draw(), self._rand_range() < self.flip_prob, None
        if self._rand_range() < self.shift_prob:
            x, y = np.random.uniform(0.5 - self.shift, 0.5 + self.shift, 2)
            center = x * width, y * height
        matrix = letterbox_matrix((height, width), self.size, zoom=zoom, flipped=flipped, center=center)
        return Warp(matrix, (height, width), self.size)


class QuarterTurns(Transform):
    """Rotates by ``k`` quarter turns counter-clockwise without interpolation, unlike Detectron2's rotation."""

    def __init__(self, k: int, height: int, width: int):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.rot90(img, self.k)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        x, y = coords[:, 0], coords[:, 1]
        turned = [(x, y), (y, self.width - x), (self.width - x, self.height - y), (self.height - y, x)]
        return np.stack(turned[self.k % 4], axis=1)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return np.rot90(segmentation, self.k)


class RandomQuarterTurns(T.Augmentation):
    """Rotates by 0, 1, 2 or 3 quarter turns, each with the same probability."""

    def get_transform(self, image: np.ndarray) -> Transform:
        return QuarterTurns(np.random.randint(4), *image.shape[:2])
