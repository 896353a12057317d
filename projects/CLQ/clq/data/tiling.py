"""Divides a large annotated image into tiles. Boxes are XYXY in pixels; windows consist of whole pixels."""

import math

import numpy as np

# A box is dropped when a cut leaves less than this fraction of its area: what remains no longer shows the object, and
# its border is that of the cut rather than that of the object. A lower value keeps slivers as targets; a higher one
# leaves clearly visible halves of objects unlabelled.
MIN_VISIBLE = 0.25


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Computes the start positions of tiles that cover ``[0, length)``: evenly spaced, and as few as possible.

    Args:
        length: number of pixels to cover.
        tile: side of a tile in pixels. An image that is not longer has one tile, which starts at 0.
        overlap: minimum overlap of neighbouring tiles, as a fraction of ``tile`` in [0, 1).
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
        The clipped boxes, (M, 4), in the same coordinates, and the fraction of each box's area that is inside the
        window, (M,) in [0, 1]; the fraction is 0 for boxes without area.
    """
    x0, y0, x1, y1 = window
    clipped = np.clip(boxes, [x0, y0, x0, y0], [x1, y1, x1, y1])
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    inside = np.prod(np.maximum(clipped[:, 2:] - clipped[:, :2], 0), axis=1)
    return clipped, np.divide(inside, area, out=np.zeros(len(boxes)), where=area > 0)


def boxes_in_window(boxes: np.ndarray, window: tuple[int, int, int, int], min_visible: float) -> np.ndarray:
    """Selects the boxes that belong to a tile, and clips them to it.

    Args:
        boxes: (M, 4) XYXY in the image.
        window: the tile (x0, y0, x1, y1) in the image.
        min_visible: boxes of which a smaller fraction of the area is inside are left out.

    Returns:
        (M', 4) XYXY relative to the corner of the tile.
    """
    clipped, visible = visible_fraction(boxes, window)
    return clipped[visible >= min_visible] - np.array([*window[:2], *window[:2]])


def split_at(boxes: np.ndarray, line: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits boxes at a vertical line.

    Args:
        boxes: (M, 4) XYXY.
        line: x coordinate of the line.

    Returns:
        The boxes entirely to the left (``x2 <= line``) and those entirely to the right (``x1 >= line``). A box that
        crosses the line is in neither.
    """
    return boxes[boxes[:, 2] <= line], boxes[boxes[:, 0] >= line]
