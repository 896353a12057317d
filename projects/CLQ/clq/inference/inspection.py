"""What is behind each detection in an image: the parts of its score, its distributions, and the taps of its alignment.

Legend: R_l locations of a level, K classes, P detections, G offset groups.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from clq.engine.amp import inference_autocast
from clq.errors import UserError
from clq.inference.inputs import ImageLike, to_rgb_array
from clq.inference.predictor import Predictor
from clq.modeling.box_coding import DistributionCoder
from clq.modeling.head.feature_alignment import Offsets
from clq.modeling.meta_arch.clq import CLQ
from clq.modeling.postprocess import moved_to_image
from clq.modeling.structures import Predictions

# What detections may be ranked by, and the field of the candidates that holds it. NMS goes by it, too.
RANKINGS = {"final score": "final_scores", "class score": "cls_scores", "quality": "pred_quality"}


class Inspection:
    """The candidates of one image, which may be selected again with another ranking, and what they were made of.

    Args:
        predictor: detector whose meta-architecture is ``CLQ``.
        image: image as the predictor takes it.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        num_levels: number of levels of the pyramid.
        rankings: names of :data:`RANKINGS` that the detector has. Without a quality branch there is one.

    Raises:
        UserError: the detector has another meta-architecture, or the image cannot be used.
    """

    def __init__(self, predictor: Predictor, image: ImageLike):
        if not isinstance(predictor.model, CLQ):
            name = predictor.cfg.MODEL.META_ARCHITECTURE
            raise UserError(f"MODEL.META_ARCHITECTURE {name}: only detectors of CLQ can be inspected.")
        self.image, _ = to_rgb_array(image, predictor.read_options)
        self._record = predictor.detector(tile=0).prepare(predictor.of_input(self.image))
        self._model = predictor.model
        with _recorded(self._model) as records, inference_autocast(predictor.cfg):
            (candidates,) = self._model.candidates([self._record])
        self._candidates = candidates.to("cpu")
        self._candidates.final_scores = self._candidates.scores
        self._predictions: Predictions = records.predictions
        self._offsets: list[Tensor] = records.offsets
        self.num_levels = len(self._model.strides)
        self.rankings = [name for name, field in RANKINGS.items() if self._candidates.has(field)]

    def detections(self, ranking: str = "final score") -> Instances:
        """Selects detections by NMS, as the detector does, among candidates that are ranked by one of their scores.

        Args:
            ranking: one of :attr:`rankings`.

        Returns:
            Instances in pixels of the image, best first, with the fields of the model's output. ``scores`` are those of
            the ranking, ``final_scores`` those of the detector.
        """
        fields = {name: value[:] for name, value in self._candidates.get_fields().items()}
        candidates = Instances(self._candidates.image_size, **fields)
        candidates.pred_boxes = candidates.pred_boxes.clone()  # which the selection clips
        candidates.scores = candidates.get(RANKINGS[ranking])
        return moved_to_image(self._model.selector.select(candidates), self._record)

    def distributions(self, level: int, location: int) -> np.ndarray | None:
        """The distributions of the four sides of a box that a location predicts.

        Returns:
            (4, n + 1) probabilities of the bins 0 to n, in strides from the location, for left, top, right and bottom;
            None if the detector has another box coding.
        """
        coder = self._model.coder
        if not isinstance(coder, DistributionCoder):
            return None
        logits = self._predictions.box_pred[level][0].flatten(1)[:, location]
        return coder.probabilities(logits).numpy()

    def stride(self, level: int) -> int:
        """Stride of a level, in pixels of the network's input."""
        return self._model.strides[level]

    def bin_width(self, level: int) -> np.ndarray:
        """(2,) width and height of a bin of the distributions of a level, in pixels of the image."""
        zero, one = self._in_image(torch.tensor([[0, 0], [1, 1]]), level)
        return one - zero

    def position(self, level: int, location: int) -> np.ndarray:
        """(2,) x and y of a location, in pixels of the image."""
        return self._in_image(self._cell(level, location), level)

    def taps(self, level: int, location: int) -> np.ndarray | None:
        """(G, 9, 2) x and y of the taps of the feature alignment, in pixels of the image; None if there is none."""
        if not self._offsets:
            return None
        offsets = self._offsets[level][0].flatten(1)[:, location].view(-1, 9, 2)
        regular = torch.cartesian_prod(torch.arange(-1.0, 2.0), torch.arange(-1.0, 2.0))  # (dy, dx), row-major
        return self._in_image(self._cell(level, location) + (offsets + regular).flip(-1), level)

    def _cell(self, level: int, location: int) -> Tensor:
        """(2,) column and row of a location."""
        width = self._predictions.cls_logits[level].shape[-1]
        return torch.tensor([location % width, location // width])

    def _in_image(self, cells: Tensor, level: int) -> np.ndarray:
        """Maps columns and rows (..., 2) of a level to x and y in pixels of the image."""
        points = (cells + self._model.anchor_generator.offset) * self._model.strides[level]
        if "input_from_image" in self._record:
            inverse = torch.linalg.inv(self._record["input_from_image"])
            return (points.double() @ inverse[:2, :2].T + inverse[:2, 2]).numpy()
        height, width = self._record["image"].shape[-2:]
        scale = torch.tensor([self._record["width"] / width, self._record["height"] / height])
        return (points * scale).numpy()


class _Records:
    """What the hooks of :func:`_recorded` have seen."""

    predictions: Predictions

    def __init__(self) -> None:
        self.offsets: list[Tensor] = []  # of each level

    def keep_predictions(self, module: nn.Module, inputs: Any, output: Predictions) -> None:
        self.predictions = Predictions(*([level.float().cpu() for level in levels] for levels in output))

    def keep_offsets(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.offsets.append(output.float().cpu())


@contextmanager
def _recorded(model: CLQ) -> Iterator[_Records]:
    """Records the head's output, and the offsets of its first alignment, level by level."""
    records = _Records()
    hooks = [model.head.register_forward_hook(records.keep_predictions)]
    offsets = next((module for module in model.head.modules() if isinstance(module, Offsets)), None)
    if offsets is not None:
        hooks.append(offsets.register_forward_hook(records.keep_offsets))
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()
