"""Cuts a large annotated image into tiles. Boxes are XYXY in pixels; windows are whole pixels."""

import math

import numpy as np

# A box that a cut leaves less of than this is dropped: what is left does not show the object any more, and its border
# is the cut's, not the object's. Lower keeps slivers as targets; higher leaves plain halves of objects unlabelled.
MIN_VISIBLE = 0.25


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Starts of the fewest, evenly spread tiles that cover ``[0, length)`` and overlap by at least ``overlap``.

    Args:
        length: pixels to cover.
        tile: side of a tile, pixels; a shorter image gives one start, 0.
        overlap: least shared part of neighbours, as a fraction of ``tile`` in [0, 1).
    """
    if length <= tile:
        return [0]
    count = math.ceil((length - tile) / (tile * (1 - overlap))) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def visible_fraction(boxes: np.ndarray, window: tuple[float, float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes to a window.

    Args:
        boxes: (M, 4) XYXY.
        window: (x0, y0, x1, y1) in the same coordinates.

    Returns:
        The boxes clipped to the window, (M, 4), still in those coordinates, and the part of each box's area that is
        inside, (M,) in [0, 1]; 0 for boxes without area.
    """
    x0, y0, x1, y1 = window
    clipped = np.clip(boxes, [x0, y0, x0, y0], [x1, y1, x1, y1])
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    inside = np.prod(np.maximum(clipped[:, 2:] - clipped[:, :2], 0), axis=1)
    return clipped, np.divide(inside, area, out=np.zeros(len(boxes)), where=area > 0)


def boxes_in_window(boxes: np.ndarray, window: tuple[int, int, int, int], min_visible: float) -> np.ndarray:
    """The boxes that belong to a tile, clipped to it and relative to its corner.

    Args:
        boxes: (M, 4) XYXY in the image.
        window: the tile (x0, y0, x1, y1) in the image.
        min_visible: boxes with a smaller part of their area inside are left out.

    Returns:
        (M', 4) XYXY in the tile.
    """
    clipped, visible = visible_fraction(boxes, window)
    return clipped[visible >= min_visible] - np.array([*window[:2], *window[:2]])


def split_at(boxes: np.ndarray, line: int) -> tuple[np.ndarray, np.ndarray]:
    """The boxes wholly left, ``x2 <= line``, and wholly right, ``x1 >= line``; one that crosses is in neither."""
    return boxes[boxes[:, 2] <= line], boxes[boxes[:, 0] >= line]
