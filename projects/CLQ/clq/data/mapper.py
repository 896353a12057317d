"""Training images: augmentation and the mapper from a data set's record to the model's input."""

import copy

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import (
    annotations_to_instances,
    build_augmentation,
    check_image_size,
    filter_empty_instances,
    transform_instance_annotations,
)
from detectron2.structures import Boxes, BoxMode, Instances
from fvcore.transforms.transform import CropTransform, PadTransform, Transform, TransformList

from clq.data.images import read_image
from clq.data.tiling import MIN_VISIBLE, visible_fraction
from clq.errors import UserError, blamed_on


class RandomZoomCrop(T.Augmentation):
    """Zooms by a random factor and keeps a random window of fixed size, padded right and below where it is larger.

    Only the window is resized, so the cost is the output's, whatever the factor. Unlike Detectron2's ``ResizeScale``
    the factor is relative to the image, and log-uniform: halving is as likely as doubling.
    """

    PAD_VALUE = 128  # grey, as Detectron2's FixedSizeCrop

    def __init__(self, scale: tuple[float, float], size: tuple[int, int] | None):
        """Takes plain values.

        Args:
            scale: least and greatest zoom factor.
            size: (height, width) of the output in pixels; None keeps the whole zoomed image.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> TransformList:
        height, width = image.shape[:2]
        zoom = np.exp(self._rand_range(*np.log(self.scale)))
        tall, wide = self.size or (round(height * zoom), round(width * zoom))
        y, h, new_h = _window(height, zoom, tall, self._rand_range())
        x, w, new_w = _window(width, zoom, wide, self._rand_range())
        return TransformList(
            [
                CropTransform(x, y, w, h, width, height),
                T.ResizeTransform(h, w, new_h, new_w),
                PadTransform(0, 0, wide - new_w, tall - new_h, new_w, new_h, self.PAD_VALUE),
            ]
        )


def _window(length: int, zoom: float, size: int, position: float) -> tuple[int, int, int]:
    """One axis of a zoomed crop: its start and length in the image, and its length in the output (at most ``size``)."""
    kept = max(1, round(size / zoom))
    if kept >= length:
        return 0, length, max(1, min(size, round(length * zoom)))
    return round(position * (length - kept)), kept, size


class QuarterTurns(Transform):
    """Turns by ``k`` quarters counter-clockwise: exact, where Detectron2's rotation interpolates and needs OpenCV."""

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


class RandomColor(T.Augmentation):
    """Brightness, contrast and saturation, each scaled by a random factor within 1 -+ ``strength``.

    The product of Detectron2's three transforms (gray values about 0, the image's mean, and each pixel's own gray) is
    one affine map of the channels, which Pillow applies in one pass: without rounding in between, and several times
    faster, so that two loader processes keep up with training.
    """

    GRAY_OF_RGB = (0.299, 0.587, 0.114)  # ITU-R 601, as Detectron2's RandomSaturation

    def __init__(self, strength: float, channels: str):
        """Takes plain values.

        Args:
            strength: 0 to 1.
            channels: order of the channels, "RGB" or "BGR".
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        b, c, s = np.random.uniform(1 - self.strength, 1 + self.strength, 3)
        gray = np.array([self.GRAY_OF_RGB["RGB".index(channel)] for channel in self.channels])
        linear = b * c * (s * np.eye(3) + (1 - s) * gray)  # each row: one output channel from the three
        offset = np.full((3, 1), b * (1 - c) * image.mean())
        matrix = tuple(np.hstack([linear, offset]).ravel())
        return T.PILColorTransform(lambda pil: pil.convert("RGB", matrix))  # "RGB" here: three channels, in any order


class BoxMapper(DatasetMapper):
    """Detectron2's mapper for boxes, and masks if ``MODEL.MASK_ON``, with :func:`~clq.data.images.read_image`.

    In training it also drops boxes that augmentation cut to a sliver (``MIN_VISIBLE``); Detectron2 drops a box only
    when nothing of it is left. All boxes of an image are transformed at once: one by one they cost more than the pixels
    where an image holds dozens.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """The model's input: ``image`` (3, H, W) uint8, in training ``instances``, and the record's other entries.

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
        except ValueError as e:  # Pillow's, about a height or width of 0
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            raise UserError(f"image {record['file_name']}: {size}: too thin for the size that INPUT asks for.") from e
        record["image"] = torch.as_tensor(np.ascontiguousarray(data.image.transpose(2, 0, 1)))
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, data.image.shape[:2])
        return record

    def _transform_annotations(self, dataset_dict: dict, transforms: TransformList, image_shape: tuple[int, int]):
        annotations = [a for a in dataset_dict.pop("annotations") if not a.get("iscrowd", 0)]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        boxes = transforms.apply_box(np.array(boxes, dtype=float).reshape(-1, 4))
        height, width = image_shape
        boxes, visible = visible_fraction(boxes, (0, 0, width, height))
        kept = visible >= MIN_VISIBLE
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
            moved = [transform_instance_annotations(a, transforms, image_shape) for a in annotations]
            return annotations_to_instances(moved, image_shape, self.instance_mask_format).gt_masks


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Detectron2's own crop, resizing and flip, then what ``INPUT.AUG`` adds: zoom and crop, turns, flip, colour.

    Colour comes last, on the fewest pixels.

    Raises:
        UserError: a value of ``INPUT.AUG`` out of range.
    """
    aug = cfg.INPUT.AUG
    _check(aug, cfg.INPUT.FORMAT)
    with blamed_on("INPUT.MIN_SIZE_TRAIN, MIN_SIZE_TRAIN_SAMPLING, RANDOM_FLIP and CROP"):
        augmentations = build_augmentation(cfg, is_train=True)
        if cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    if aug.CROP or tuple(aug.SCALE) != (1, 1):
        augmentations.append(RandomZoomCrop(tuple(aug.SCALE), tuple(aug.CROP) or None))
    if aug.ROTATE90:
        augmentations.append(RandomQuarterTurns())
    if aug.FLIP_VERTICAL:
        augmentations.append(T.RandomFlip(horizontal=False, vertical=True))
    if aug.COLOR:
        augmentations.append(RandomColor(aug.COLOR, cfg.INPUT.FORMAT))
    return augmentations


def _check(aug: CfgNode, image_format: str) -> None:
    if not 0 <= aug.COLOR <= 1:
        raise UserError(f"INPUT.AUG.COLOR {aug.COLOR}: must be within 0 (off) and 1.")
    if aug.COLOR and image_format not in ("RGB", "BGR"):
        raise UserError(f"INPUT.AUG.COLOR {aug.COLOR}: needs INPUT.FORMAT RGB or BGR; set it to 0 for {image_format}.")
    if len(aug.SCALE) != 2 or not 0 < aug.SCALE[0] <= aug.SCALE[1]:
        raise UserError(f"INPUT.AUG.SCALE {list(aug.SCALE)}: must be [least, greatest] zoom, both above 0.")
    if len(aug.CROP) not in (0, 2) or any(not isinstance(side, int) or side < 1 for side in aug.CROP):
        raise UserError(f"INPUT.AUG.CROP {list(aug.CROP)}: must be [height, width] in pixels, or [] for none.")


def build_train_mapper(cfg: CfgNode) -> DatasetMapper:
    """The mapper for ``build_detection_train_loader``: reads ``INPUT.FORMAT`` images, augments, drops slivers."""
    return BoxMapper(cfg, is_train=True, augmentations=build_augmentations(cfg))


def build_test_mapper(cfg: CfgNode) -> DatasetMapper:
    """The mapper for ``build_detection_test_loader``: reads and resizes."""
    return BoxMapper(cfg, is_train=False)
