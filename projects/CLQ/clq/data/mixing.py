"""The geometry of mosaics, and means of images."""

from typing import NamedTuple

import numpy as np

from clq.data.tiling import visible_fraction


class Sample(NamedTuple):
    """An augmented image, (H, W, C), its boxes, (M, 4) XYXY float64, and their classes, (M,) int64."""

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray


class Span(NamedTuple):
    """A part of one axis of a resized image, and where it is in the frame; in pixels.

    Attributes:
        start: where the part begins in the resized image.
        length: its length.
        offset: where it begins in the frame.
    """

    start: int
    length: int
    offset: int


def span(resized: int, frame: int, center: int, *, before: bool) -> Span:
    """The part that a mosaic shows of an image which touches the centre on one side.

    Args:
        resized: length of the resized image.
        frame: length of the frame.
        center: the point of the frame in which the images meet.
        before: whether the image ends at the centre, rather than begins there.
    """
    if before:
        length = min(resized, center)
        return Span(resized - length, length, center - length)
    return Span(0, min(resized, frame - center), center)


def mean_of(first: Sample, second: Sample, weight: float, min_visible: float) -> Sample:
    """The weighted mean of two images where both are, and the first alone elsewhere, with the boxes of both.

    Args:
        first: sample that gives the frame.
        second: sample whose upper left corner is that of the frame, and which is cut off at its end.
        weight: weight of the first image.
        min_visible: boxes of the second image of which less is in the frame are dropped.
    """
    height, width = (min(a, b) for a, b in zip(first.image.shape[:2], second.image.shape[:2], strict=True))
    parts = [sample.image[:height, :width].astype(np.float32) for sample in (first, second)]
    mean = weight * parts[0] + (1 - weight) * parts[1]
    dtype = np.result_type(first.image, second.image)
    image = first.image.astype(dtype)
    image[:height, :width] = np.rint(mean) if np.issubdtype(dtype, np.integer) else mean
    boxes, visible = visible_fraction(second.boxes, (0, 0, width, height))
    kept = (visible > 0) & (visible >= min_visible)
    return Sample(
        image, np.concatenate((first.boxes, boxes[kept])), np.concatenate((first.classes, second.classes[kept]))
    )
