"""Training images: augmentation and the mapper from a data set's record to the model's input."""

import copy

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
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
from fvcore.transforms.transform import TransformList

from clq.data.colors import RandomColor, RandomFloatColor
from clq.data.images import read_image
from clq.data.tiling import visible_fraction
from clq.data.transforms import Letterbox, RandomQuarterTurns, RandomZoomCrop, Warp, Zoom
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
        except ValueError as e:  # about a height or width of 0
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
        boxes = transforms.apply_box(boxes)
        height, width = image_shape
        boxes, visible = visible_fraction(boxes, (0, 0, width, height))
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
            moved = [transform_instance_annotations(a, transforms, image_shape) for a in annotations]
            return annotations_to_instances(moved, image_shape, self.instance_mask_format).gt_masks


def matrix_entry(transforms: TransformList) -> dict[str, torch.Tensor]:
    """The entry of a model's input by which boxes find back to the image; none where that is scaled as a whole.

    Returns:
        ``input_from_image``: (3, 3) float64, from (x, y, 1) in the image to (x, y, 1) in the network's input.
    """
    warp = next((t for t in transforms.transforms if isinstance(t, Warp)), None)
    return {} if warp is None else {"input_from_image": torch.from_numpy(warp.matrix)}


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Training's: all that move pixels, from the original ones in one interpolation, then the colours.

    Without ``INPUT.AUG.SCALE``, ``INPUT.AUG.CROP`` and ``INPUT.LETTERBOX`` the interpolation is Detectron2's own.

    Raises:
        UserError: a value of ``INPUT`` out of range, or of ``INPUT.LETTERBOX`` that does not go with another key.
    """
    check_letterbox(cfg)
    aug = cfg.INPUT.AUG
    _check_geometry(aug)
    _check_colors(aug, cfg.INPUT.FORMAT)
    augmentations = [_build_letterbox(cfg)] if cfg.INPUT.LETTERBOX.ENABLED else _build_resizing(cfg)
    if aug.COLOR:
        augmentations.append(RandomColor(aug.COLOR, cfg.INPUT.FORMAT))
    if aug.BRIGHTNESS or tuple(aug.CONTRAST) != (1, 1) or tuple(aug.SATURATION) != (1, 1):
        limits = aug.BRIGHTNESS, tuple(aug.CONTRAST), tuple(aug.SATURATION)
        augmentations.append(RandomFloatColor(*limits, aug.COLOR_PROB, cfg.INPUT.FORMAT))
    return augmentations


def _build_zoom(aug: CfgNode) -> Zoom:
    return Zoom(tuple(aug.SCALE), aug.SCALE_SAMPLING, aug.SCALE_PROB)


def _build_letterbox(cfg: CfgNode) -> Letterbox:
    aug, flip_prob = cfg.INPUT.AUG, 0.5 if cfg.INPUT.RANDOM_FLIP == "horizontal" else 0.0
    return Letterbox(tuple(cfg.INPUT.LETTERBOX.SIZE), _build_zoom(aug), flip_prob, aug.SHIFT, aug.SHIFT_PROB)


def _build_resizing(cfg: CfgNode) -> list[T.Augmentation]:
    aug = cfg.INPUT.AUG
    with blamed_on("INPUT.MIN_SIZE_TRAIN, MIN_SIZE_TRAIN_SAMPLING, RANDOM_FLIP and CROP"):
        resize, *flip = build_augmentation(cfg, is_train=True)
        crop = [T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)] if cfg.INPUT.CROP.ENABLED else []
    if aug.CROP or tuple(aug.SCALE) != (1, 1):
        zoom = RandomZoomCrop(resize, _build_zoom(aug), tuple(aug.CROP) or None)
        augmentations = [*crop, *flip, zoom]  # the flip first: the padding stays right and below
    else:
        augmentations = [*crop, resize, *flip]
    if aug.ROTATE90:
        augmentations.append(RandomQuarterTurns())
    if aug.FLIP_VERTICAL:
        augmentations.append(T.RandomFlip(horizontal=False, vertical=True))
    return augmentations


def build_test_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """The test's, of evaluation and prediction: Detectron2's resizing, or the letterbox.

    Raises:
        UserError: see :func:`check_letterbox`.
    """
    check_letterbox(cfg)
    if cfg.INPUT.LETTERBOX.ENABLED:
        return [Letterbox(tuple(cfg.INPUT.LETTERBOX.SIZE))]
    return build_augmentation(cfg, is_train=False)


def check_letterbox(cfg: CfgNode) -> None:
    """Checks ``INPUT.LETTERBOX``.

    Raises:
        UserError: it is enabled, and its size is none, or another key does not go with it.
    """
    box, i = cfg.INPUT.LETTERBOX, cfg.INPUT
    if not box.ENABLED:
        if i.AUG.SHIFT:
            raise UserError(f"INPUT.AUG.SHIFT {i.AUG.SHIFT}: needs INPUT.LETTERBOX.ENABLED True; set it to 0.0.")
        return
    if len(box.SIZE) != 2 or any(not isinstance(side, int) or side < 1 for side in box.SIZE):
        raise UserError(f"INPUT.LETTERBOX.SIZE {list(box.SIZE)}: must be [height, width] in pixels.")
    kind = cfg.MODEL.META_ARCHITECTURE
    if kind != "CLQ":  # their own forward takes boxes back by scaling alone
        raise UserError(f"INPUT.LETTERBOX.ENABLED True: {kind} models do not read it; set it to False.")
    others = {
        "TEST.AUG.ENABLED": cfg.TEST.AUG.ENABLED,
        "INPUT.CROP.ENABLED": i.CROP.ENABLED,
        "INPUT.AUG.CROP": len(i.AUG.CROP) > 0,
        "INPUT.AUG.ROTATE90": i.AUG.ROTATE90,
        "INPUT.AUG.FLIP_VERTICAL": i.AUG.FLIP_VERTICAL,
        "INPUT.RANDOM_FLIP vertical": i.RANDOM_FLIP == "vertical",
    }
    if clash := [key for key, is_set in others.items() if is_set]:
        raise UserError(f"INPUT.LETTERBOX.ENABLED True: does not go with {clash[0]}; unset one of the two.")


def _check_geometry(aug: CfgNode) -> None:
    if len(aug.SCALE) != 2 or not 0 < aug.SCALE[0] <= aug.SCALE[1]:
        raise UserError(f"INPUT.AUG.SCALE {list(aug.SCALE)}: must be [least, greatest] zoom, both above 0.")
    if aug.SCALE_SAMPLING not in ("log", "uniform"):
        raise UserError(f"INPUT.AUG.SCALE_SAMPLING {aug.SCALE_SAMPLING}: must be log or uniform.")
    if len(aug.CROP) not in (0, 2) or any(not isinstance(side, int) or side < 1 for side in aug.CROP):
        raise UserError(f"INPUT.AUG.CROP {list(aug.CROP)}: must be [height, width] in pixels, or [] for none.")
    if not 0 <= aug.SHIFT <= 0.5:
        raise UserError(f"INPUT.AUG.SHIFT {aug.SHIFT}: must be within 0 (off) and 0.5.")
    for key in ("SCALE_PROB", "SHIFT_PROB", "MIN_VISIBLE"):
        if not 0 <= aug[key] <= 1:
            raise UserError(f"INPUT.AUG.{key} {aug[key]}: must be within 0 and 1.")


def _check_colors(aug: CfgNode, image_format: str) -> None:
    for key in ("COLOR", "BRIGHTNESS"):
        if not 0 <= aug[key] <= 1:
            raise UserError(f"INPUT.AUG.{key} {aug[key]}: must be within 0 (off) and 1.")
    for key in ("CONTRAST", "SATURATION"):
        if len(aug[key]) != 2 or not 0 <= aug[key][0] <= aug[key][1]:
            raise UserError(f"INPUT.AUG.{key} {list(aug[key])}: must be [least, greatest] factor, none below 0.")
    if not 0 <= aug.COLOR_PROB <= 1:
        raise UserError(f"INPUT.AUG.COLOR_PROB {aug.COLOR_PROB}: must be within 0 and 1.")
    for key, off in (("COLOR", 0), ("SATURATION", [1.0, 1.0])):
        if aug[key] != off and image_format not in ("RGB", "BGR"):
            value = list(aug[key]) if key == "SATURATION" else aug[key]
            raise UserError(
                f"INPUT.AUG.{key} {value}: needs INPUT.FORMAT RGB or BGR; set it to {off} for {image_format}."
            )


def build_train_mapper(cfg: CfgNode) -> DatasetMapper:
    """The mapper for ``build_detection_train_loader``: reads ``INPUT.FORMAT`` images, augments, drops slivers."""
    return BoxMapper(cfg, is_train=True, augmentations=build_augmentations(cfg))


def build_test_mapper(cfg: CfgNode) -> DatasetMapper:
    """The mapper for ``build_detection_test_loader``: reads, and resizes or letterboxes."""
    return BoxMapper(cfg, is_train=False, augmentations=build_test_augmentations(cfg))
