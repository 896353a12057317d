"""An exported detector in the place of the detector itself, so that whatever runs the one can run the other."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from clq.export.formats import Runner
from clq.modeling.postprocess import moved_to_image

QUALITY_FIELDS = "cls_scores", "pred_quality"  # of instances, in the order of the graph's outputs


class ExportedDetector(nn.Module):
    """Calls a file as evaluation and prediction call a detector.

    Args:
        runner: what runs the file, which has decode and NMS.
    """

    def __init__(self, runner: Runner):
        super().__init__()
        self._runner = runner

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        """The detections in each image of a batch, in pixels of the original images; see :class:`clq.CLQ`."""
        images = [x["image"] for x in batched_inputs]
        found = run_batch(self._runner, images)
        return [{"instances": moved_to_image(*pair)} for pair in zip(found, batched_inputs, strict=True)]


def run_batch(runner: Runner, images: Sequence[Tensor]) -> list[Instances]:
    """What a file detects in images (C, H, W), in their pixels and exactly as it puts it out."""
    outputs = runner(*as_inputs(images))
    return [_to_instances([output[i] for output in outputs], image) for i, image in enumerate(images)]


def as_inputs(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Inputs of a graph, see :meth:`~clq.export.graph.DetectorGraph.forward`, from images (C, H, W)."""
    sizes = torch.tensor([x.shape[-2:] for x in images])
    height, width = sizes.amax(dim=0).tolist()
    padded = images[0].new_zeros((len(images), len(images[0]), height, width), dtype=torch.float32)
    for target, x in zip(padded, images, strict=True):
        target[:, : x.shape[-2], : x.shape[-1]] = x
    return padded, sizes


def _to_instances(outputs: Sequence[Tensor], image: Tensor) -> Instances:
    """The detections in an image (C, H, W), from its part of each output."""
    boxes, scores, labels, count, *parts = outputs
    found = Instances((image.shape[-2], image.shape[-1]))
    found.pred_boxes = Boxes(boxes[:count])
    found.scores, found.pred_classes = scores[:count], labels[:count]
    for name, values in zip(QUALITY_FIELDS, parts, strict=False):
        found.set(name, values[:count])
    return found
