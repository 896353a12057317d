"""The mapper that makes mosaics of four images and weighted means of two. Each is resized once, from its original."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.data.detection_utils import filter_empty_instances
from detectron2.structures import Boxes, Instances
from fvcore.transforms.transform import NoOpTransform, Transform, TransformList

from clq.data.augmentations import build_augmentations, build_color_augmentations, build_tile_augmentations
from clq.data.images import ImageError
from clq.data.mapper import BoxMapper, as_input
from clq.data.mixing import Sample, Span, mean_of, span
from clq.data.transforms import ResizedWindow, Warp

_MIXUP_BETA = 32.0  # both parameters of the distribution of mixup's weight
_QUADRANTS = (True, True), (True, False), (False, True), (False, False)  # (upper, left)


class MixingMapper(BoxMapper):
    """A mapper for training that can also make one input of several records.

    Called with one record, it does what :class:`BoxMapper` does.

    Args:
        is_train: True.
        mosaic: probability of a mosaic.
        mixup: probability of a mean of two images.
        ends: position in the stream of samples from which on nothing is mixed.
        scale: lowest and highest factor on the size of the images of a mosaic.
        frame: (height, width) of a mosaic in pixels; None for the size that its first image has alone.
        letterbox: whether images are fitted into the frame and warped like those of the test.
        tile: augmentations of each image of a mosaic before it is resized, which move pixels without interpolation.
        resize: resizing without a letterbox.
        colors: augmentations of the whole mosaic.
        kwargs: further arguments of :class:`BoxMapper`.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        mosaic: float,
        mixup: float,
        ends: int,
        scale: tuple[float, float],
        frame: tuple[int, int] | None,
        letterbox: bool,
        tile: list[T.Augmentation],
        resize: T.ResizeShortestEdge,
        colors: list[T.Augmentation],
        **kwargs,
    ):
        super().__init__(is_train, **kwargs)
        self.mosaic, self.mixup, self.ends = mosaic, mixup, ends
        self.scale, self.frame, self.letterbox = scale, frame, letterbox
        self.tile, self.resize, self.colors = T.AugmentationList(tile), resize, T.AugmentationList(colors)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        aug, box, solver = cfg.INPUT.AUG, cfg.INPUT.LETTERBOX, cfg.SOLVER
        tile, resize = build_tile_augmentations(cfg)
        return {
            **super().from_config(cfg, is_train),
            "augmentations": build_augmentations(cfg),
            "mosaic": aug.MOSAIC,
            "mixup": aug.MIXUP,
            "ends": int(aug.MIXING_ENDS * solver.MAX_ITER * solver.IMS_PER_BATCH),
            "scale": tuple(aug.MOSAIC_SCALE),
            "frame": tuple(box.SIZE if box.ENABLED else aug.CROP) or None,
            "letterbox": box.ENABLED,
            "tile": tile,
            "resize": resize,
            "colors": build_color_augmentations(cfg),
        }

    def mix(self, record: dict, draw: Callable[[], dict], position: int) -> dict:
        """Turns a record, and perhaps others, into one input of the model.

        Args:
            record: record in Detectron2's format.
            draw: returns another record, at random.
            position: number of the sample in the training.

        Returns:
            As a call with the record alone; ``mixed_with`` names the files of the others.

        Raises:
            ImageError: an image cannot be used; its attribute ``file_name`` tells which.
        """
        mosaic, mixup = np.random.uniform(size=2) < (self.mosaic, self.mixup)
        if position >= self.ends or not (mosaic or mixup):
            return self(record)
        records = [record, *(draw() for _ in range(3 * mosaic))]
        sample = self._mosaic(records) if mosaic else self._alone(record)
        if mixup:
            records.append(draw())
            sample = mean_of(
                sample, self._alone(records[-1]), np.random.beta(_MIXUP_BETA, _MIXUP_BETA), self.min_visible
            )
        instances = Instances(sample.image.shape[:2])
        instances.gt_boxes = Boxes(torch.from_numpy(sample.boxes))
        instances.gt_classes = torch.from_numpy(sample.classes)
        mapped = {key: copy.deepcopy(value) for key, value in record.items() if key != "annotations"}
        mapped["image"], mapped["instances"] = as_input(sample.image), filter_empty_instances(instances)
        mapped["mixed_with"] = [other["file_name"] for other in records[1:]]
        return mapped

    def _alone(self, record: dict) -> Sample:
        """A record as it is without others."""
        try:
            source_shape, image, transforms = self._augment(record)
        except ImageError as e:
            e.file_name = record["file_name"]  # type: ignore[attr-defined]
            raise
        return Sample(image, *self._annotations(record, transforms, source_shape, image.shape[:2]))

    def _annotations(self, record: dict, transforms: TransformList, *shapes: tuple[int, int]):
        """Boxes, (M, 4) XYXY, and classes, (M,), of what is left of a record's objects; shapes before and after."""
        annotations = [a for a in record.get("annotations", []) if not a.get("iscrowd", 0)]
        boxes, kept = self._transform_boxes(annotations, transforms, *shapes)
        return boxes[kept], np.array([a["category_id"] for a in annotations], dtype=np.int64)[kept]

    def _mosaic(self, records: list[dict]) -> Sample:
        """Four images that meet in a random point of the middle half of the frame, in both directions."""
        tiles = [self._tile(record) for record in records]
        frame = self.frame or tiles[0].base
        center = [np.random.randint(side // 4, side - side // 4 + 1) for side in frame]
        grey = 0 if self.letterbox else ResizedWindow.PAD_VALUE
        image = np.full((*frame, *tiles[0].image.shape[2:]), grey, dtype=tiles[0].image.dtype)
        boxes, classes = [], []
        for tile, (upper, left) in zip(tiles, _QUADRANTS, strict=True):
            factor = np.random.uniform(*self.scale)
            size = [max(1, round(side * factor)) for side in tile.base]
            y = span(size[0], frame[0], center[0], before=upper)
            x = span(size[1], frame[1], center[1], before=left)
            if not (y.length and x.length):
                continue
            window = self._window(tile.image.shape[:2], (size[0], size[1]), y, x)
            image[y.offset : y.offset + y.length, x.offset : x.offset + x.length] = window.apply_image(tile.image)
            transforms = TransformList([*tile.transforms.transforms, window])
            found = self._annotations(tile.record, transforms, tile.source_shape, (y.length, x.length))
            boxes.append(found[0] + np.array([x.offset, y.offset] * 2))
            classes.append(found[1])
        data = T.AugInput(image)
        self.colors(data)
        return Sample(data.image, np.concatenate(boxes), np.concatenate(classes))

    def _tile(self, record: dict) -> "_Tile":
        """Reads an image of a mosaic and flips, turns and crops it; raises ImageError as :meth:`mix`."""
        try:
            image = self._read(record)
            data = T.AugInput(image)
            transforms = self.tile(data)
            height, width = data.image.shape[:2]
            if self.letterbox:
                assert self.frame is not None
                ratio = min(self.frame[0] / height, self.frame[1] / width)
                base = max(1, round(height * ratio)), max(1, round(width * ratio))
            else:
                resize = self.resize.get_transform(data.image)
                base = (height, width) if isinstance(resize, NoOpTransform) else (resize.new_h, resize.new_w)
                if min(base) < 1:
                    size = f"{image.shape[1]} x {image.shape[0]} pixels"
                    raise ImageError(f"image {record['file_name']}: {size}: too thin for the size that INPUT asks for.")
        except ImageError as e:
            e.file_name = record["file_name"]  # type: ignore[attr-defined]
            raise
        return _Tile(record, image.shape[:2], data.image, transforms, base)

    def _window(self, source: tuple[int, int], resized: tuple[int, int], y: Span, x: Span) -> Transform:
        """The transform from an image to the part of it that a mosaic shows."""
        if self.letterbox:  # as in the test
            steps = np.array([resized[1] / source[1], resized[0] / source[0], 1])
            matrix = np.diag(steps) - np.array([[0, 0, x.start], [0, 0, y.start], [0, 0, 0]])
            return Warp(matrix, source, (y.length, x.length))
        return ResizedWindow(
            source_size=source, resized_size=resized, corner=(y.start, x.start), size=(y.length, x.length)
        )


class _Tile(NamedTuple):
    """An image of a mosaic before it is resized: its transforms so far, and its usual size, (height, width)."""

    record: dict
    source_shape: tuple[int, int]
    image: np.ndarray
    transforms: TransformList
    base: tuple[int, int]
