"""Test-time augmentation of a one-stage detector: several sizes and flips of an image, and one NMS for all."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Boxes, Instances
from fvcore.transforms.transform import Transform
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clq.errors import UserError
from clq.modeling.meta_arch.clq import CLQ


class DenseTTA(nn.Module):
    """Runs a detector on several versions of each image; evaluation calls it like the detector itself.

    The candidates of each version are mapped back to the original image. Clipping and NMS follow there, over all
    versions at once. So a detection that only one version has found competes with all others, and
    ``TEST.DETECTIONS_PER_IMAGE`` counts once.

    The versions run one after the other, so the device needs the memory of one inference at the largest size. The time
    grows with the number of pixels: Detectron2's nine sizes with flips have 20 times the pixels of an image with a
    short side of 800.

    Args:
        model: detector, whose training or evaluation mode is kept.
        mapper: function that makes the versions of an input, such as Detectron2's :class:`DatasetMapperTTA`. It resizes
            ``image`` as it is, so pixels are interpolated only once where that has the original size.
    """

    def __init__(self, model: CLQ | DistributedDataParallel, mapper: DatasetMapperTTA):
        super().__init__()
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.mapper = mapper
        self.train(model.training)  # Detectron2's evaluation puts back the mode in which it finds a model

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detections of each image, in pixels of ``height`` x ``width``, or of ``image`` where these are missing.

        Args:
            batched_inputs: inputs of the detector.

        Raises:
            UserError: an image is so thin that it has no pixels at one of the sizes.
        """
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def _detect(self, image: dict) -> Instances:
        height, width = image["image"].shape[-2:]
        image = {"height": height, "width": width, **image}
        size = image["height"], image["width"]
        try:
            versions = self.mapper(image)
        except ValueError as e:  # Pillow's, about a height or width of 0
            name = image.get("file_name", f"of {width} x {height} pixels")
            raise UserError(
                f"image {name}: too thin for TEST.AUG.MIN_SIZES and MAX_SIZE; remove it from the data set."
            ) from e
        found = [_moved(self.model.candidates([x])[0], x["transforms"].inverse(), size) for x in versions]
        candidates = Instances.cat(found)
        candidates.pred_boxes.clip(size)
        return self.model.selector.select(candidates[candidates.pred_boxes.nonempty()])


def _moved(instances: Instances, transform: Transform, image_size: tuple[int, int]) -> Instances:
    """Instances with transformed boxes, on an image of another size (H, W)."""
    boxes = instances.pred_boxes.tensor
    moved = Instances(image_size, **instances.get_fields())
    moved.pred_boxes = Boxes(torch.from_numpy(transform.apply_box(boxes.cpu().numpy())).to(boxes))
    return moved


def check_augmentation(cfg: CfgNode) -> None:
    """Checks ``TEST.AUG``.

    Raises:
        UserError: it is enabled, and a value is out of range or the model does not support it.
    """
    aug, kind = cfg.TEST.AUG, cfg.MODEL.META_ARCHITECTURE
    if not aug.ENABLED:
        return
    if kind != "CLQ":
        raise UserError(
            f"TEST.AUG.ENABLED True: there is no test-time augmentation for {kind} models; set it to False."
        )
    if not aug.MIN_SIZES or any(not isinstance(size, int) or size < 0 for size in aug.MIN_SIZES):
        sizes = list(aug.MIN_SIZES)
        raise UserError(
            f"TEST.AUG.MIN_SIZES {sizes}: must be one or more short sides in pixels; 0 stands for the image's own."
        )
    if aug.MAX_SIZE < 1:
        raise UserError(f"TEST.AUG.MAX_SIZE {aug.MAX_SIZE}: must be at least 1.")
