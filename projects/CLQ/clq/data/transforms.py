"""Geometric transforms: the random ones of training images, and the letterbox, which training and test share.

Coordinates are in pixels, as Detectron2 has them: an image of width W reaches from 0 to W, and the centre of its first
pixel is at 0.5.
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
    """How a zoom factor is drawn.

    Attributes:
        scale: least and greatest factor, above 0.
        sampling: "log" (halving is as likely as doubling) or "uniform".
        prob: probability of drawing one at all; otherwise the factor is 1.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    sampling: str = "log"
    prob: float = 1.0

    def draw(self) -> float:
        """A random factor."""
        if np.random.uniform() >= self.prob:
            return 1.0
        if self.sampling == "uniform":
            return np.random.uniform(*self.scale)
        return np.exp(np.random.uniform(*np.log(self.scale)))


class ResizedWindow(Transform):
    """Resizes an image and keeps one window of the result, of which nothing else is computed.

    The window is interpolated from the original pixels in one step (bilinear, antialiased). Time and memory are those
    of the window and of the part of the image that it shows. What it has right of and below the resized image is grey.
    """

    PAD_VALUE = 128  # grey, as Detectron2's FixedSizeCrop

    def __init__(self, h: int, w: int, new_h: int, new_w: int, y: int, x: int, out_h: int, out_w: int):
        """Takes plain values, all in whole pixels.

        Args:
            h, w: size of the image.
            new_h, new_w: size that the whole image is resized to.
            y, x: corner of the window in the resized image.
            out_h, out_w: size of the window.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        tall, wide = min(self.out_h, self.new_h - self.y), min(self.out_w, self.new_w - self.x)
        rows, top, bottom = _source(self.y, tall, self.h / self.new_h, self.h)
        columns, left, right = _source(self.x, wide, self.w / self.new_w, self.w)
        part = img[rows, columns]  # Pillow copies what it is given: give it no more than it reads
        part = Image.fromarray(part[..., 0] if part.shape[2:] == (1,) else part)
        window = part.resize((wide, tall), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        padding = [(0, self.out_h - tall), (0, self.out_w - wide), (0, 0)][: img.ndim]
        window = np.asarray(window).reshape(tall, wide, *img.shape[2:])
        return np.pad(window, padding, constant_values=self.PAD_VALUE)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords * [self.new_w / self.w, self.new_h / self.h] - [self.x, self.y]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """The nearest pixels; padded with 0."""
        tall, wide = min(self.out_h, self.new_h - self.y), min(self.out_w, self.new_w - self.x)
        rows = (self.y + np.arange(tall) + 0.5) * self.h // self.new_h
        columns = (self.x + np.arange(wide) + 0.5) * self.w // self.new_w
        window = segmentation[np.ix_(rows.astype(int), columns.astype(int))]
        return np.pad(window, [(0, self.out_h - tall), (0, self.out_w - wide)])


def _source(start: int, length: int, step: float, limit: int) -> tuple[slice, float, float]:
    """One axis of a resized window: the pixels that the filter reads, and where in these the window begins and ends.

    Args:
        start, length: of the window, in pixels of the resized image.
        step: pixels of the image for one of the resized image.
        limit: pixels of the image.
    """
    begin, end = start * step, min((start + length) * step, limit)
    reach = math.ceil(max(step, 1)) + 1  # of the bilinear filter, to either side, and one to spare
    first = max(0, math.floor(begin) - reach)
    return slice(first, math.ceil(end) + reach), begin - first, end - first


class RandomZoomCrop(T.Augmentation):
    """Resizes, zooms by a random factor and keeps a random window of fixed size, all in one :class:`ResizedWindow`."""

    def __init__(self, resize: T.ResizeShortestEdge, zoom: Zoom, size: tuple[int, int] | None):
        """Takes plain values.

        Args:
            resize: draws the size that the zoom factor is relative to.
            zoom: draws that factor.
            size: (height, width) of the output in pixels, padded right and below; None keeps the whole image.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """A random transform for an image of this size.

        Raises:
            ValueError: nothing would be left of the image.
        """
        height, width = image.shape[:2]
        resize = self.resize.get_transform(image)
        new_h, new_w = (height, width) if isinstance(resize, NoOpTransform) else (resize.new_h, resize.new_w)
        if min(new_h, new_w) < 1:
            raise ValueError("height and width must be > 0")
        zoom = self.zoom.draw()
        new_h, new_w = max(1, round(new_h * zoom)), max(1, round(new_w * zoom))
        tall, wide = self.size or (new_h, new_w)
        y = np.random.randint(max(0, new_h - tall) + 1)
        x = np.random.randint(max(0, new_w - wide) + 1)
        return ResizedWindow(height, width, new_h, new_w, y, x, tall, wide)


class Warp(Transform):
    """An affine map of the image into a black frame by OpenCV: bilinear, without antialiasing."""

    def __init__(self, matrix: np.ndarray, source_size: tuple[int, int], size: tuple[int, int]):
        """Takes plain values.

        Args:
            matrix: (3, 3) float64, from (x, y, 1) in the image to (x, y, 1) in the frame. Boxes follow it in the
                coordinates of this module. OpenCV counts pixels from the centre of the first, so that with a scale
                of r an object lies (1 - r) / 2 pixels right of and below its box, as in NanoDet.
            source_size: (height, width) of the image.
            size: (height, width) of the frame.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, flags: int = cv2.INTER_LINEAR) -> np.ndarray:
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
    zoom: float = 1.0,
    flipped: bool = False,
    center: tuple[float, float] | None = None,
) -> np.ndarray:
    """The matrix of a :class:`Warp` that fits the image into the frame: as large as goes in, centred.

    Args:
        source_size: (height, width) of the image.
        size: (height, width) of the frame.
        zoom: factor by which the image is enlarged about its centre before.
        flipped: whether it is mirrored, left to right, before.
        center: (x, y) that its centre moves to before, in pixels of the image; None leaves it.

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
    """The image in the middle of a black frame; in training it is zoomed, flipped and shifted by the same warp."""

    def __init__(
        self,
        size: tuple[int, int],
        zoom: Zoom = Zoom(),
        flip_prob: float = 0.0,
        shift: float = 0.0,
        shift_prob: float = 1.0,
    ):
        """Takes plain values; the defaults are the test's.

        Args:
            size: (height, width) of the frame in pixels.
            zoom: draws the zoom factor.
            flip_prob: probability of mirroring the image left to right.
            shift: the image's centre moves by up to this share of its width and of its height.
            shift_prob: probability of moving it at all.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        zoom, flipped, center = self.zoom.draw(), self._rand_range() < self.flip_prob, None
        if self._rand_range() < self.shift_prob:
            x, y = np.random.uniform(0.5 - self.shift, 0.5 + self.shift, 2)
            center = x * width, y * height
        matrix = letterbox_matrix((height, width), self.size, zoom, flipped, center)
        return Warp(matrix, (height, width), self.size)


class QuarterTurns(Transform):
    """Turns by ``k`` quarters counter-clockwise: exact, where Detectron2's rotation interpolates."""

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
    """0, 1, 2 or 3 quarter turns, equally likely."""

    def get_transform(self, image: np.ndarray) -> Transform:
        return QuarterTurns(np.random.randint(4), *image.shape[:2])
