"""The mapper that turns a record of a data set into the input of the model."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import (
    annotations_to_instances,
    check_image_size,
    filter_empty_instances,
    transform_instance_annotations,
)
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from fvcore.transforms.transform import CropTransform, TransformList

from clq.config import check_keys
from clq.data.augmentations import build_augmentations, build_test_augmentations
from clq.data.images import ImageError, read_image, read_options
from clq.data.tiling import cut_tile, visible_fraction
from clq.data.transforms import Warp
from clq.errors import UserError, blamed_on

UNREADABLE = "unreadable"  # key of the reason why a test image could not be used
_UNREADABLE_SIZE = 32, 32  # (height, width) of the image in its place


class BoxMapper(DatasetMapper):
    """Detectron2's mapper for boxes, and for masks if ``MODEL.MASK_ON`` is set.

    It differs from Detectron2's in three ways. Images are read by :func:`~clq.data.images.read_image`. In training it
    also drops boxes of which augmentation leaves only a sliver; Detectron2 drops a box only if nothing is left of it.
    All boxes of an image are transformed together, because transforming dozens of boxes one by one takes longer than
    transforming the pixels.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        min_visible: float,
        skip: bool = False,
        read_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        """Initializes the mapper.

        Args:
            is_train: whether the input of the model includes annotations.
            min_visible: boxes of which augmentation leaves a smaller fraction of the area are dropped. Any part of a
                box that is outside the image before augmentation does not count.
            skip: in testing, whether an image that cannot be used is replaced by a black one, with the reason under
                :data:`UNREADABLE`, rather than refused. In training the loader replaces it by another image.
            read_options: keyword arguments of :func:`~clq.data.images.read_image`; its defaults if None.
            kwargs: further arguments of :class:`DatasetMapper`.
        """
        super().__init__(is_train, **kwargs)
        self.min_visible = min_visible
        self.skip = skip
        self.read_options = dict(read_options or {})

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        return {
            **super().from_config(cfg, is_train),
            "min_visible": cfg.INPUT.AUG.MIN_VISIBLE,
            "skip": cfg.DATASETS.ON_ERROR == "skip",
            "read_options": read_options(cfg),
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Turns a record into the input of the model.

        Args:
            dataset_dict: record in Detectron2's format.

        Returns:
            The record with ``image``, (3, H, W), in training with ``instances`` in place of the annotations, and in
            testing with the entry of :func:`matrix_entry`. The image is uint8, or float32 on the same scale if an
            augmentation produces real numbers.

        Raises:
            ImageError: the image cannot be read, its size is not the one given by the data set, or it is so thin that
                nothing is left of it at the size that ``INPUT`` asks for.
        """
        try:
            return self._map(copy.deepcopy(dataset_dict))
        except ImageError as e:
            if self.is_train or not self.skip:
                raise
            image = torch.zeros((3, *_UNREADABLE_SIZE), dtype=torch.uint8)
            return {**dataset_dict, "image": image, UNREADABLE: str(e)}

    def _map(self, record: dict) -> dict:
        source_shape, image, transforms = self._augment(record)
        record["image"] = as_input(image)
        if not self.is_train:
            record.pop("annotations", None)
            record.update(matrix_entry(transforms))
        elif "annotations" in record:
            self._transform_annotations(record, transforms, source_shape, image.shape[:2])
        return record

    def _read(self, record: dict) -> np.ndarray:
        """The image of a record, (H, W, C), upright and of the size that the record gives."""
        image = read_image(record["file_name"], self.image_format, **self.read_options)
        try:
            image = cut_tile(record, image)
            check_image_size(record, image)
        except ValueError as e:  # Detectron2's message names the file and the sizes
            raise ImageError(" ".join(str(e).split())) from e
        return image

    def _augment(self, record: dict) -> tuple[tuple[int, int], np.ndarray, TransformList]:
        """Reads and augments the image of a record.

        Returns:
            (height, width) of the image before, the augmented image, (H, W, C), and the transforms.
        """
        image = self._read(record)
        data = T.AugInput(image)
        try:
            transforms = self.augmentations(data)
            if not data.image.size:
                raise ValueError("height and width must be > 0")
        except (ValueError, ZeroDivisionError) as e:  # raised for a height or width of 0
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            raise ImageError(f"image {record['file_name']}: {size}: too thin for the size that INPUT asks for.") from e
        return image.shape[:2], data.image, transforms

    def _transform_annotations(
        self,
        dataset_dict: dict,
        transforms: TransformList,
        source_shape: tuple[int, int],
        image_shape: tuple[int, int],
    ) -> None:
        """Replaces the annotations of a record with the transformed ``instances``.

        Args:
            dataset_dict: record in Detectron2's format.
            transforms: transforms that were applied to the image.
            source_shape: (height, width) of the image before the transforms.
            image_shape: (height, width) of the image after the transforms.
        """
        annotations = [a for a in dataset_dict.pop("annotations") if not a.get("iscrowd", 0)]
        boxes, kept = self._transform_boxes(annotations, transforms, source_shape, image_shape)
        instances = Instances(image_shape)
        instances.gt_boxes = Boxes(boxes[kept])
        instances.gt_classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)[kept]
        if self.use_instance_mask and annotations:
            masks = self._masks(dataset_dict["file_name"], annotations, transforms, image_shape)
            instances.gt_masks = masks[torch.from_numpy(kept)]
        dataset_dict["instances"] = filter_empty_instances(instances)

    def _transform_boxes(
        self,
        annotations: list[dict],
        transforms: TransformList,
        source_shape: tuple[int, int],
        image_shape: tuple[int, int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Transforms and clips the boxes of annotations; arguments as of :meth:`_transform_annotations`.

        Returns:
            XYXY boxes, (M, 4), and whether enough is left of each, (M,).
        """
        converted = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        source_boxes = np.array(converted, dtype=float).reshape(-1, 4)
        source_boxes = source_boxes.clip(0, [*source_shape[::-1], *source_shape[::-1]])
        boxes, visible = _visible_boxes(source_boxes, transforms, image_shape)
        return boxes, visible >= self.min_visible - 1e-6  # rounding in a resize can move a border out of the image

    def _masks(
        self, name: str, annotations: list[dict], transforms: TransformList, image_shape: tuple[int, int]
    ) -> PolygonMasks | BitMasks:
        """Transforms the masks; their type depends on ``INPUT.MASK_FORMAT``."""
        if not all("segmentation" in a for a in annotations):
            raise UserError(f"image {name}: an object has no segmentation, which MODEL.MASK_ON True needs; add it.")
        with blamed_on(f"image {name} with INPUT.MASK_FORMAT {self.instance_mask_format}"):
            try:
                moved = [transform_instance_annotations(a, transforms, image_shape) for a in annotations]
            except ModuleNotFoundError as e:  # shapely, which Detectron2 uses to clip polygons
                raise UserError(
                    f"INPUT.CROP with polygons needs the package {e.name}; install it or set INPUT.MASK_FORMAT bitmask."
                ) from e
            return annotations_to_instances(moved, image_shape, self.instance_mask_format).gt_masks


def _visible_boxes(
    boxes: np.ndarray, transforms: TransformList, image_shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Transforms and clips boxes.

    Boxes are also clipped after each crop, so that what a crop cut off does not return if a later step pads the image.

    Args:
        boxes: (M, 4) XYXY in the original image.
        transforms: transforms that were applied to the image.
        image_shape: (height, width) of the image after the transforms.

    Returns:
        The boxes in the transformed image, (M, 4), and the fraction of the area that is left of each, (M,).
    """
    height, width = image_shape
    left = np.ones(len(boxes))
    for transform in transforms.transforms:
        boxes = transform.apply_box(boxes)
        if isinstance(transform, CropTransform):
            boxes, visible = visible_fraction(boxes, (0, 0, transform.w, transform.h))
            left = left * visible
    boxes, visible = visible_fraction(boxes, (0, 0, width, height))
    return boxes, left * visible


def as_input(image: np.ndarray) -> torch.Tensor:
    """An image, (H, W, C), as the input of a model, (C, H, W)."""
    # Writable, because torch warns of arrays that are not, as grey images of Pillow are.
    return torch.as_tensor(np.require(image.transpose(2, 0, 1), requirements=["C", "W"]))


def matrix_entry(transforms: TransformList) -> dict[str, torch.Tensor]:
    """Returns the entry of the model's input with which detections are mapped back to a letterboxed image.

    Returns:
        ``input_from_image``: (3, 3) float64, which maps (x, y, 1) in the image to (x, y, 1) in the network's input. The
        dictionary is empty where the image is only resized, since its size is then enough to map detections back.
    """
    warp = next((t for t in transforms.transforms if isinstance(t, Warp)), None)
    return {} if warp is None else {"input_from_image": torch.from_numpy(warp.matrix)}


def build_train_mapper(cfg: CfgNode) -> BoxMapper:
    """Builds the mapper of training, which mixes images if ``INPUT.AUG.MOSAIC`` or ``INPUT.AUG.MIXUP`` is set.

    Raises:
        UserError: a value under ``INPUT`` is at fault, or images with masks were to be mixed.
    """
    from clq.data.mixing_mapper import MixingMapper  # it imports this module

    check_keys(cfg, "INPUT.AUG")
    aug = cfg.INPUT.AUG
    if not (aug.MOSAIC or aug.MIXUP):
        return BoxMapper(cfg, is_train=True, augmentations=build_augmentations(cfg))
    if cfg.MODEL.MASK_ON:
        raise UserError("MODEL.MASK_ON True: masks cannot be mixed; set INPUT.AUG.MOSAIC and INPUT.AUG.MIXUP to 0.0.")
    return MixingMapper(cfg, is_train=True)


def build_test_mapper(cfg: CfgNode) -> DatasetMapper:
    """Builds the mapper for ``build_detection_test_loader``. With ``DATASETS.TILE``, the detector resizes the tiles."""
    return BoxMapper(cfg, is_train=False, augmentations=[] if cfg.DATASETS.TILE.SIZE else build_test_augmentations(cfg))
