"""An ONNX detector whose network computes with 8-bit integers, which processors with VNNI or AMX do faster.

Backbone and towers are quantized, by onnxruntime, from the ranges of their activations in a few images. What follows
them stays float32: decode and NMS, the last convolutions of the head, whose outputs are logits, and those that predict
where to sample, whose outputs are positions that 256 values would not tell apart. So does the begin of a ShuffleNet:
its first unit has depthwise convolutions without an activation, and costs NanoDet-m up to 1.4 AP if it is quantized.
"""

import logging
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from clq.errors import UserError
from clq.export.exported import ExportedDetector, as_inputs
from clq.export.formats import Runner
from clq.export.graph import INPUTS
from clq.modeling.meta_arch.clq import CLQ

_BEST, _LEAST_IOU, _LEAST_SHARE = 10, 0.5, 0.5  # see :class:`Closeness`

_FLOAT_WEIGHTS = re.compile(r"\b(cls_logits|box_pred|quality_pred|offsets)\b|\bbottom_up\.(conv1|stage2\.0)\.")
_WEIGHTED = "Conv", "MatMul"
# Operators that do not leave the network.
_PASSING = "Relu", "LeakyRelu", "MaxPool", "Add", "Concat", "Resize", "Split", "Reshape", "Transpose"
_ONE_INPUT = "Resize", "Split", "Reshape"  # whose other inputs are shapes
_QUANTIZED = *_WEIGHTED, *_PASSING[:-2]


@dataclass
class Closeness:
    """How close the detections of a quantized detector are to those of the detector.

    Attributes:
        images: number of images.
        expected: number of the detector's detections that count: the ten best of each image.
        ious: for each of these that has a counterpart, a detection of its class with an IoU of at least 0.5: that IoU.
        scores: the differences of their scores.
    """

    images: int
    expected: int
    ious: list[float]
    scores: list[float]

    def __str__(self) -> str:
        share = len(self.ious) / max(self.expected, 1)
        parts = f"{self.images} images: {share:.0%} of the {_BEST} best detections of each are found again, "
        if not self.ious:
            return parts + "none"
        return f"{parts}with IoUs of {np.mean(self.ious):.3f} and scores within {np.mean(self.scores):.3f} on average"


def quantize(content: bytes, images: Iterable[Tensor]) -> bytes:
    """Quantizes an ONNX model.

    Args:
        content: the model, as :func:`~clq.export.formats.write_onnx` makes it.
        images: images (C, H, W) for which the ranges of the activations are measured, pixels from 0 to 255.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        inputs = ({n: x.numpy() for n, x in zip(INPUTS, as_inputs([image]), strict=True)} for image in images)

        def get_next(self) -> dict | None:
            return next(self.inputs, None)

    model = onnx.load_from_string(content)
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises to fold constants first, which the exporter has done
    try:
        # An activation that is 0 in all images makes it divide by 0 before it chooses another scale.
        with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
            path = Path(folder) / "int8.onnx"
            quantize_static(
                model,
                path,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTIZED),
                nodes_to_quantize=_quantized_nodes(model.graph),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            quantized = onnx.load(path)
    finally:
        logging.disable(level)
    entry = next((x for x in quantized.metadata_props if x.key == "precision"), None) or quantized.metadata_props.add()
    entry.key, entry.value = "precision", "int8"
    return quantized.SerializeToString()


@torch.no_grad()
def check_quantized(runner: Runner, model: CLQ, images: Sequence[Tensor]) -> Closeness:
    """Compares the best detections of a quantized detector with those of the detector.

    Args:
        runner: what runs the quantized file.
        model: the detector, in eval mode.
        images: images (C, H, W), pixels from 0 to 255 in the order of ``INPUT.FORMAT``.

    Raises:
        UserError: fewer than half of the detections are found again.
    """
    quantized, closeness = ExportedDetector(runner), Closeness(len(images), 0, [], [])
    for image in images:
        found, expected = (detector([{"image": image}])[0]["instances"] for detector in (quantized, model))
        expected = expected[:_BEST]
        closeness.expected += len(expected)
        if not len(found) or not len(expected):
            continue
        overlap = box_iou(expected.pred_boxes.tensor, found.pred_boxes.tensor)
        overlap[expected.pred_classes[:, None] != found.pred_classes] = 0.0
        best, index = overlap.max(dim=1)
        same = best >= _LEAST_IOU
        closeness.ious += best[same].tolist()
        closeness.scores += (found.scores[index] - expected.scores).abs()[same].tolist()
    if len(closeness.ious) < _LEAST_SHARE * closeness.expected:
        raise UserError(
            f"--int8: {closeness}; give more images like those that the detector will see as --calibration."
        )
    return closeness


def _quantized_nodes(graph: Any) -> list[str]:
    """Names of the nodes to quantize: those through which values pass from one convolution of the network to another.

    Args:
        graph: ``onnx.GraphProto``.
    """
    weights, network, found = {x.name for x in graph.initializer}, set(), []
    for node in graph.node:
        constant = [name for name in node.input if name in weights]
        if node.op_type in _WEIGHTED:
            inside = bool(constant) and not any(map(_FLOAT_WEIGHTS.search, constant))
        else:
            data = node.input[:1] if node.op_type in _ONE_INPUT else node.input
            inside = node.op_type in _PASSING and any(name in network for name in data)
            if node.op_type == "Reshape" and node.input[0] in weights:
                weights.update(node.output)
        if inside:
            network.update(node.output)
            if node.op_type in _QUANTIZED:
                found.append(node.name)
    return found
