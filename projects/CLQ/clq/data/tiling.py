"""Divides a large annotated image into tiles. Boxes are XYXY in pixels; windows consist of whole pixels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import BoxMode

from clq.config import check_keys
from clq.errors import UserError

# A box is dropped when a cut leaves less than this fraction of its area: what remains no longer shows the object, and
# its border is that of the cut rather than that of the object. A lower value keeps slivers as targets; a higher one
# leaves clearly visible halves of objects unlabelled.
MIN_VISIBLE = 0.25


Window = tuple[int, int, int, int]  # XYXY


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


def tile_windows(image_size: tuple[int, int], tile: int, overlap: float) -> list[Window]:
    """The tiles of an image, row by row.

    Args:
        image_size: (height, width) of the image.
        tile: side of a tile; see :func:`tile_starts`.
        overlap: see :func:`tile_starts`.
    """
    height, width = image_size
    return [
        (x, y, min(x + tile, width), min(y + tile, height))
        for y in tile_starts(height, tile, overlap)
        for x in tile_starts(width, tile, overlap)
    ]


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


def tile_records(records: Sequence[dict], cfg: CfgNode) -> list[dict]:
    """Makes a record of each tile of each training image, as ``DATASETS.TILE`` says.

    Objects of which a tile shows less than ``DATASETS.TILE.MIN_VISIBLE`` are not in its record, and neither are
    crowds. Tiles without an object are left out if ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` is set.

    Args:
        records: records in Detectron2's format, with ``height`` and ``width``.
        cfg: config with ``DATASETS.TILE.SIZE`` above 0.

    Returns:
        Records whose height, width and boxes are those of a tile, which :func:`cut_tile` cuts out of the image. A
        record of an image that is a single tile is the same as before.
    """
    tile, tiles = cfg.DATASETS.TILE, []
    for record in records:
        size = record["height"], record["width"]
        windows = tile_windows(size, tile.SIZE, tile.OVERLAP)
        if len(windows) == 1:
            tiles.append(record)
            continue
        annotations = [a for a in record.get("annotations", []) if not a.get("iscrowd", 0)]
        converted = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        boxes = np.array(converted, dtype=float).reshape(-1, 4).clip(0, [*size[::-1], *size[::-1]])
        for window in windows:
            found = _objects_in(window, boxes, annotations, tile.MIN_VISIBLE)
            if found or not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
                x0, y0, x1, y1 = window
                place = {"height": y1 - y0, "width": x1 - x0, "tile": window, "image_size": size}
                tiles.append({**record, **place, "annotations": found})
    return tiles


def _objects_in(window: Window, boxes: np.ndarray, annotations: Sequence[dict], min_visible: float) -> list[dict]:
    """The annotations of a tile; ``boxes`` are those of ``annotations``, (M, 4) XYXY in the image."""
    clipped, visible = visible_fraction(boxes, window)
    clipped = clipped - np.array([*window[:2], *window[:2]])
    kept = np.flatnonzero((visible >= min_visible) & (visible > 0)).tolist()
    return [
        {"category_id": annotations[i]["category_id"], "bbox": clipped[i].tolist(), "bbox_mode": BoxMode.XYXY_ABS}
        for i in kept
    ]


def cut_tile(record: dict[str, Any], image: np.ndarray) -> np.ndarray:
    """The part of an image that a record is about: its tile, or all of it.

    Args:
        record: record in Detectron2's format, which may be one of :func:`tile_records`.
        image: (H, W, C), the image of its file.

    Raises:
        ValueError: the image does not have the size from which the tile was computed.
    """
    if "tile" not in record:
        return image
    if image.shape[:2] != tuple(record["image_size"]):
        (height, width), expected = image.shape[:2], record["image_size"]
        raise ValueError(
            f"image {record['file_name']}: has {width} x {height} pixels, but the data set says "
            f"{expected[1]} x {expected[0]}; correct the data set."
        )
    x0, y0, x1, y1 = record["tile"]
    return image[y0:y1, x0:x1]


def check_tiles(cfg: CfgNode) -> None:
    """Checks ``DATASETS.TILE`` and the keys that cannot be combined with it.

    Raises:
        UserError: a value is out of range, or another key conflicts with it.
    """
    check_keys(cfg, "DATASETS.TILE")
    others = {"MODEL.MASK_ON": cfg.MODEL.MASK_ON, "TEST.AUG.ENABLED": cfg.TEST.AUG.ENABLED}
    if cfg.DATASETS.TILE.SIZE and (clash := [key for key, is_set in others.items() if is_set]):
        raise UserError(f"DATASETS.TILE.SIZE {cfg.DATASETS.TILE.SIZE}: cannot be combined with {clash[0]}; unset one.")
