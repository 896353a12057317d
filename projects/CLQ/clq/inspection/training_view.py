"""Images as a training sees them, with the locations that are trained towards each object."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from clq.checkpoint.checkpointer import Checkpointer
from clq.data.loader import TrainLoader
from clq.data.mapper import build_train_mapper
from clq.inspection.training_images import typical_config
from clq.modeling.assign.atss import ATSSAssigner
from clq.modeling.assign.base import Assignment, AssignmentInputs
from clq.modeling.assign.max_iou import MaxIoUAssigner
from clq.modeling.by_iteration import ByIteration
from clq.modeling.meta_arch.clq import CLQ
from clq.modeling.structures import Predictions, Targets

# These look at the anchors alone. TOOD's first assigner is ATSS's.
_WITHOUT_PREDICTIONS = ATSSAssigner, MaxIoUAssigner, ByIteration


@dataclass(frozen=True)
class Positives:
    """The locations of an image that are trained towards an object.

    Attributes:
        centers: (P, 2) xy of their anchors' centres, in pixels of the input.
        levels: (P,) index of the level of each.
        objects: (P,) index of the object of each.
    """

    centers: np.ndarray
    levels: np.ndarray
    objects: np.ndarray


@dataclass(frozen=True)
class View:
    """An image as a training sees it.

    Attributes:
        file_name: path of the image.
        image: (H, W, 3) uint8, RGB.
        boxes: (M, 4) XYXY in pixels of ``image``.
        classes: (M,) index of the class of each.
        positives: locations that are trained towards an object; None for models other than CLQ.
    """

    file_name: str
    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    positives: Positives | None


class Targeting:
    """The positives of the detector that a config describes, from the code that computes its training targets.

    The network does not run, unless the assigner looks at its predictions; then it has the weights of the config.

    Args:
        cfg: config of the training, of the meta-architecture CLQ.

    Raises:
        UserError: the detector cannot be built, or its weights cannot be read.
    """

    def __init__(self, cfg: CfgNode):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE, cfg.MODEL.CLQ.COMPILE = "cpu", False
        self.model: CLQ = build_model(cfg).train()
        self._assign, self.model.assigner = self.model.assigner, self._keep_assignment
        self.model.loss = self._keep_targets
        self._predicts = not isinstance(self._assign, _WITHOUT_PREDICTIONS)
        if self._predicts and cfg.MODEL.WEIGHTS:
            Checkpointer(self.model, max_gib=cfg.MODEL.MAX_WEIGHTS_GIB).load(cfg.MODEL.WEIGHTS)

    @property
    def levels(self) -> list[str]:
        """Names of the levels, fine to coarse."""
        return list(self.model.head_in_features)

    @torch.no_grad()
    def __call__(self, sample: dict) -> Positives:
        """The positives of an input of the model with ``instances``."""
        images = self.model.preprocess_image([sample])
        predictions = self.model.predict(images.tensor) if self._predicts else self._blank(images.tensor.shape[-2:])
        with EventStorage(0):  # the first iteration
            self.model.forward_training(images, None, predictions, [sample["instances"]])
        location = self._targets.location[self._targets.is_positive]
        sizes = torch.tensor([h * w for h, w in self._inputs.grid_sizes])
        return Positives(
            self._inputs.centers[location].numpy(),
            torch.bucketize(location, sizes.cumsum(0), right=True).numpy(),
            self._assignment.matched_idxs[0, location].numpy(),
        )

    def _blank(self, size: Sequence[int]) -> Predictions:
        """Predictions of 0 for an input of this (height, width), with few channels."""
        grids = [[-(-side // stride) for side in size] for stride in self.model.strides]
        return Predictions([torch.zeros(1, 1, *g) for g in grids], [torch.zeros(1, 4, *g) for g in grids], [], [])

    def _keep_assignment(self, inputs: AssignmentInputs) -> Assignment:
        self._inputs, self._assignment = inputs, self._assign(inputs)
        return self._assignment

    def _keep_targets(self, predictions: object, targets: Targets, anchors: object, strides: object) -> dict:
        self._targets = targets
        return {}


def training_views(
    cfg: CfgNode,
    records: Sequence[dict],
    indices: Iterable[int],
    *,
    augmented: bool = True,
    targeting: Targeting | None = None,
    on_left_out: Callable[[str, str], None] | None = None,
) -> Iterator[View]:
    """Images as the loader of a training gives them.

    Args:
        cfg: config of the training; the augmentations follow from its ``SEED``, which must not be negative.
        records: records in Detectron2's format, also those that a mosaic may take images from.
        indices: indices of the records to show.
        augmented: whether images are augmented, or only resized to the middle of the sizes of training.
        targeting: source of the positives; None shows none.
        on_left_out: called with the path of an image that cannot be used and the reason; another one takes its place.
            Without it, the error is raised.

    Yields:
        A view for each index.
    """
    chosen = list(indices)
    mapper = build_train_mapper(cfg if augmented else typical_config(cfg))
    loader = TrainLoader(
        list(records),
        mapper,
        lambda seed, dataset: itertools.cycle(chosen),
        seed=cfg.SEED,
        batch_size=1,
        group_by_shape=False,
        on_left_out=on_left_out,
    )
    for [sample] in itertools.islice(loader, len(chosen)):
        pixels = sample["image"].permute(1, 2, 0).numpy().clip(0, 255).astype(np.uint8)
        instances = sample["instances"]
        yield View(
            sample["file_name"],
            convert_image_to_rgb(pixels, cfg.INPUT.FORMAT),
            instances.gt_boxes.tensor.numpy(),
            instances.gt_classes.numpy(),
            targeting(sample) if targeting else None,
        )
