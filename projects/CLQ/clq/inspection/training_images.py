"""The images of the training sets at the size at which the network typically sees them."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from fvcore.transforms.transform import TransformList

from clq.data.augmentations import build_augmentations
from clq.data.datasets import require_known
from clq.data.left_out import left_out_images
from clq.data.transforms import Warp
from clq.errors import UserError

# Values that switch an augmentation off, by the name of its key under INPUT.AUG; of these, a config has some.
_OFF = {
    "CROP": [],
    "SHIFT": 0.0,
    "ROTATE90": False,
    "FLIP_VERTICAL": False,
    "COLOR": 0.0,
    "BRIGHTNESS": 0.0,
    "CONTRAST": [1.0, 1.0],
    "SATURATION": [1.0, 1.0],
    "MOSAIC": 0.0,
    "MIXUP": 0.0,
}


@dataclass(frozen=True)
class SizedImage:
    """An image with objects, at the size of the network's input.

    Attributes:
        size: (height, width) in pixels of the input, without the padding of a batch.
        boxes: (M, 4) XYXY in pixels of the input, clipped to the image and each with an area.
        scale: pixels of the input per pixel of the image.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    scale: float


def read_records(data_sets: Iterable[str]) -> list[dict]:
    """The records of data sets in Detectron2's format, without images that a check has left out.

    Raises:
        UserError: a data set is unknown, or cannot be read.
    """
    records = []
    for name in data_sets:
        require_known(name)
        gone = left_out_images(name)
        try:
            records += [r for r in DatasetCatalog.get(name) if (r["file_name"], r.get("image_id")) not in gone]
        except OSError as e:  # raised by Detectron2 for its own data sets
            raise UserError(
                f"data set {name}: {e.filename or e}: {e.strerror or 'cannot be read'}; put it there."
            ) from e
    return records


def typical_config(cfg: CfgNode) -> CfgNode:
    """A copy of a config in which all that is random about the size of images has its middle, and the rest is off.

    The short side is the middle of ``INPUT.MIN_SIZE_TRAIN``, and the zoom that of ``INPUT.AUG.SCALE``.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = [short_side(cfg)], "choice"
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED = "none", False
    aug = cfg.INPUT.AUG
    if aug.SCALE_SAMPLING == "uniform":
        zoom = 1 + aug.SCALE_PROB * (sum(aug.SCALE) / 2 - 1)
    else:
        zoom = math.prod(aug.SCALE) ** (aug.SCALE_PROB / 2)
    aug.SCALE, aug.SCALE_PROB = [zoom, zoom], 1.0
    for key, off in _OFF.items():
        if key in aug:
            aug[key] = off
    return cfg


def short_side(cfg: CfgNode) -> int:
    """The middle of ``INPUT.MIN_SIZE_TRAIN`` in pixels: the mean of a range, else the median."""
    sides = list(cfg.INPUT.MIN_SIZE_TRAIN)
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        return round(sum(sides) / len(sides))
    return statistics.median_high(sides)


def object_boxes(record: dict) -> np.ndarray:
    """(M, 4) XYXY boxes of a record in pixels of its image, as they are annotated; crowds do not count."""
    annotations = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return np.array(boxes, dtype=float).reshape(-1, 4)


class Resizing:
    """What :func:`typical_config` does to an image, computed from its size alone.

    Args:
        cfg: config of the training.

    Raises:
        UserError: a value under ``INPUT`` is at fault.
    """

    def __init__(self, cfg: CfgNode):
        self.augmentations = build_augmentations(typical_config(cfg))

    def __call__(self, size: tuple[int, int]) -> tuple[TransformList, tuple[int, int]]:
        """The transforms for an image of this (height, width), and the (height, width) of the result.

        Raises:
            ValueError: the image is so thin that nothing would be left of it.
        """
        transforms, (height, width) = [], size
        for augmentation in self.augmentations:
            no_memory = np.broadcast_to(np.uint8(0), (height, width, 3))
            transform = augmentation.get_transform(no_memory)
            transforms.append(transform)
            if isinstance(transform, Warp):
                height, width = transform.size
            else:
                width, height = (round(x) for x in transform.apply_coords(np.array([[width, height]], float))[0])
        if min(height, width) < 1:
            raise ValueError("height and width must be > 0")
        return T.TransformList(transforms), (height, width)

    def sized(self, record: dict) -> SizedImage | None:
        """The image of a record at the size of the input; None if it has no objects or is too thin for that size."""
        height, width = record["height"], record["width"]
        boxes = object_boxes(record).clip(0, [width, height, width, height])
        try:
            transforms, size = self((height, width))
        except (ValueError, ZeroDivisionError):
            return None
        (x0, y0), (x1, y1) = transforms.apply_coords(np.array([[0.0, 0.0], [width, height]]))
        boxes = transforms.apply_box(boxes).clip(0, [*size[::-1], *size[::-1]]) if len(boxes) else boxes
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
        return SizedImage(size, boxes, math.sqrt((x1 - x0) * (y1 - y0) / (width * height))) if len(boxes) else None


def sample(records: Sequence[dict], count: int, seed: int = 0) -> list[dict]:
    """At most ``count`` of the records that have objects, drawn at random but always the same."""
    records = [r for r in records if any(not a.get("iscrowd", 0) for a in r.get("annotations", ()))]
    if len(records) <= count:
        return records
    chosen = np.random.default_rng(seed).choice(len(records), count, replace=False)
    return [records[i] for i in sorted(chosen)]
