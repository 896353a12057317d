"""An exported detector in the place of the detector itself, so that whatever runs the one can run the other."""

from collections.abc import Sequence
from typing import Any

from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from clq.export.check import as_inputs
from clq.export.formats import Runner
from clq.modeling.postprocess import moved_to_image

_QUALITY_FIELDS = "cls_scores", "pred_quality"


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
        outputs = self._runner(*as_inputs(images))
        found = (self._instances([output[i] for output in outputs], image) for i, image in enumerate(images))
        return [{"instances": moved_to_image(*pair)} for pair in zip(found, batched_inputs, strict=True)]

    @staticmethod
    def _instances(outputs: Sequence[Tensor], image: Tensor) -> Instances:
        """The detections in an image (C, H, W), from its part of each output."""
        boxes, scores, labels, count, *parts = outputs
        found = Instances((image.shape[-2], image.shape[-1]))
        found.pred_boxes = Boxes(boxes[:count])
        found.scores, found.pred_classes = scores[:count], labels[:count]
        for name, values in zip(_QUALITY_FIELDS, parts, strict=False):
            found.set(name, values[:count])
        return found
