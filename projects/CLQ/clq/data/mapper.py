"""The mapper from a data set's record to the model's input."""

import copy

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
from detectron2.structures import Boxes, BoxMode, Instances
from fvcore.transforms.transform import CropTransform, TransformList

from clq.data.augmentations import build_augmentations, build_test_augmentations
from clq.data.images import read_image
from clq.data.tiling import visible_fraction
from clq.data.transforms import Warp
from clq.errors import UserError, blamed_on


class BoxMapper(DatasetMapper):
    """Detectron2's mapper for boxes, and masks if ``MODEL.MASK_ON``, with :func:`~clq.data.images.read_image`.

    In training it also drops boxes that augmentation cut to a sliver; Detectron2 drops a box only when nothing of it is
    left. All boxes of an image are transformed at once: one by one they cost more than the pixels where an image holds
    dozens.
    """

    @configurable
    def __init__(self, is_train: bool, *, min_visible: float, **kwargs):
        """Takes plain values.

        Args:
            is_train: whether annotations are wanted.
            min_visible: boxes of which augmentation leaves a smaller share are dropped. What a box has outside its
                image before augmentation does not count.
            kwargs: see :class:`DatasetMapper`.
        """
        super().__init__(is_train, **kwargs)
        self.min_visible = min_visible

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        return {**super().from_config(cfg, is_train), "min_visible": cfg.INPUT.AUG.MIN_VISIBLE}

    def __call__(self, dataset_dict: dict) -> dict:
        """The model's input: ``image`` (3, H, W), in training ``instances``, and the record's other entries.

        The image is uint8, or float32 on the same scale where an augmentation makes real numbers of its colours. In
        testing there is what :func:`matrix_entry` gives, too.

        Raises:
            UserError: the image cannot be read, is not of the size that its data set says, or nothing is left of it at
                the size that ``INPUT`` asks for.
        """
        record = copy.deepcopy(dataset_dict)
        image = read_image(record["file_name"], self.image_format)
        try:
            check_image_size(record, image)
        except ValueError as e:  # Detectron2's, which names file and sizes
            raise UserError(" ".join(str(e).split())) from e
        data = T.AugInput(image)
        try:
            transforms = self.augmentations(data)
            if not data.image.size:
                raise ValueError("height and width must be > 0")
        except (ValueError, ZeroDivisionError) as e:  # about a height or width of 0
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            raise UserError(f"image {record['file_name']}: {size}: too thin for the size that INPUT asks for.") from e
        record["image"] = torch.as_tensor(np.ascontiguousarray(data.image.transpose(2, 0, 1)))
        if not self.is_train:
            record.pop("annotations", None)
            record.update(matrix_entry(transforms))
        elif "annotations" in record:
            self._transform_annotations(record, transforms, image.shape[:2], data.image.shape[:2])
        return record

    def _transform_annotations(
        self,
        dataset_dict: dict,
        transforms: TransformList,
        source_shape: tuple[int, int],
        image_shape: tuple[int, int],
    ) -> None:
        annotations = [a for a in dataset_dict.pop("annotations") if not a.get("iscrowd", 0)]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        boxes = np.array(boxes, dtype=float).reshape(-1, 4).clip(0, [*source_shape[::-1], *source_shape[::-1]])
        boxes, visible = _visible_boxes(boxes, transforms, image_shape)
        kept = visible >= self.min_visible - 1e-6  # resizing alone may move a border out of the image, by rounding
        instances = Instances(image_shape)
        instances.gt_boxes = Boxes(boxes[kept])
        instances.gt_classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)[kept]
        if self.use_instance_mask and annotations:
            masks = self._masks(dataset_dict["file_name"], annotations, transforms, image_shape)
            instances.gt_masks = masks[torch.from_numpy(kept)]
        dataset_dict["instances"] = filter_empty_instances(instances)

    def _masks(self, name: str, annotations: list[dict], transforms: TransformList, image_shape: tuple[int, int]):
        """Detectron2's polygons or bitmaps (``INPUT.MASK_FORMAT``), transformed."""
        if not all("segmentation" in a for a in annotations):
            raise UserError(f"image {name}: has an object without a segmentation, which MODEL.MASK_ON True needs.")
        with blamed_on(f"image {name} with INPUT.MASK_FORMAT {self.instance_mask_format}"):
            try:
                moved = [transform_instance_annotations(a, transforms, image_shape) for a in annotations]
            except ModuleNotFoundError as e:  # of shapely, which Detectron2 cuts polygons with
                raise UserError(
                    f"INPUT.CROP with polygons needs the package {e.name}; install it or set MASK_FORMAT bitmask."
                ) from e
            return annotations_to_instances(moved, image_shape, self.instance_mask_format).gt_masks


def _visible_boxes(
    boxes: np.ndarray, transforms: TransformList, image_shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (M, 4) moved by the transforms and clipped, and which share (M,) of each is left.

    They are clipped after each crop too: what a crop cut off does not come back where a later step pads the image.
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


def matrix_entry(transforms: TransformList) -> dict[str, torch.Tensor]:
    """The entry of a model's input by which boxes find back to the image; none where that is scaled as a whole.

    Returns:
        ``input_from_image``: (3, 3) float64, from (x, y, 1) in the image to (x, y, 1) in the network's input.
    """
    warp = next((t for t in transforms.transforms if isinstance(t, Warp)), None)
    return {} if warp is None else {"input_from_image": torch.from_numpy(warp.matrix)}


def build_train_mapper(cfg: CfgNode) -> DatasetMapper:
    """The mapper for ``build_detection_train_loader``: reads ``INPUT.FORMAT`` images, augments, drops slivers."""
    return BoxMapper(cfg, is_train=True, augmentations=build_augmentations(cfg))


def build_test_mapper(cfg: CfgNode) -> DatasetMapper:
    """The mapper for ``build_detection_test_loader``: reads, and resizes or letterboxes."""
    return BoxMapper(cfg, is_train=False, augmentations=build_test_augmentations(cfg))
