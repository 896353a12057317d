"""Class-wise NMS of a whole batch with outputs of a fixed shape, for graphs whose batch size is not known.

It has two forms. torch's file formats get one call of torchvision's NMS for all images and classes. ONNX gets its own
operator NonMaxSuppression, through an operator of torch that stands for it during the export.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torchvision.ops import nms


def after_nms(boxes: Tensor, scores: Tensor, nms_thresh: float) -> Tensor:
    """The scores that the class-wise NMS of each image keeps.

    Args:
        boxes: boxes (N, R, 4), XYXY in pixels, at least 0.
        scores: scores (N, R, K), negative where the pair is no candidate.
        nms_thresh: IoU above which the lower of two boxes of the same class goes.

    Returns:
        (N, R, K) scores, -1 where the pair is no candidate or was removed.
    """
    n, r, k = scores.shape
    image, location, label = (scores >= 0).nonzero(as_tuple=True)
    # The groups are moved apart, so that boxes of different images or classes do not overlap. In float64 the shift
    # costs no digit that an IoU of float32 boxes has.
    group = (image * k + label).double()
    apart = boxes[image, location].double() + (group * (boxes.amax().double() + 1)).unsqueeze(1)
    kept = nms(apart, scores[image, location, label].double(), nms_thresh)
    flat = (image * r + location) * k + label
    keep = flat[kept]
    return torch.full_like(scores, -1.0).flatten().index_copy(0, keep, scores.flatten()[keep]).view(n, r, k)


@torch.library.custom_op("clq::after_nms", mutates_args=())
def after_nms_op(boxes: Tensor, scores: Tensor, nms_thresh: float) -> Tensor:
    """:func:`after_nms` as one operator of torch, which :func:`onnx_translation` translates."""
    return after_nms(boxes, scores, nms_thresh)


@after_nms_op.register_fake
def _(boxes: Tensor, scores: Tensor, nms_thresh: float) -> Tensor:
    return torch.empty_like(scores)


def onnx_translation() -> dict:
    """The translation of :func:`after_nms_op` for :func:`torch.onnx.export`'s ``custom_translation_table``."""
    from onnxscript import opset18

    op = cast(Any, opset18)  # whose annotations are those of Python code that onnxscript would compile

    def translate(boxes, scores, nms_thresh: float):
        per_class = op.Transpose(scores, perm=[0, 2, 1])  # (N, K, R)
        most = op.Gather(op.Shape(boxes), op.Constant(value_ints=[1]))
        # The threshold is below 0, not 0, because a score may be so small that it is stored as 0.
        selected = op.NonMaxSuppression(
            boxes, per_class, most, op.Constant(value_floats=[nms_thresh]), op.Constant(value_floats=[-0.5])
        )  # rows of image, class, location
        places = op.Gather(selected, op.Constant(value_ints=[0, 2, 1]), axis=1)  # rows of image, location, class
        removed = op.Expand(op.Constant(value_float=-1.0), op.Shape(scores))
        return op.ScatterND(removed, places, op.GatherND(scores, places))

    return {torch.ops.clq.after_nms.default: translate}
