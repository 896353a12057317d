"""The loss leaves a GPU alone: no size, count or value of it is asked for while it works.

The GPU is one of torch's fake tensors, which have shapes and devices and no values: whatever asks for a value, or has a
shape that depends on one, raises; and a copy that waits is told by its arguments.
"""

import pytest
import torch
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from tiny_detectors import ROWS, STRIDES, build, sample
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Records copies between devices that the host waits for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            crosses = out.device != args[0].device
            waits = crosses and not kwargs.get("non_blocking", False)
        else:
            waits = func is torch.ops.aten.copy_.default and args[0].device != args[1].device and not any(args[2:])
        if waits:
            self.found.append(str(func))
        return out


def on_fake_gpu(model):
    """Moves a model's constants and parameters to a GPU that is not there."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def losses_on_a_fake_gpu(row, boxes_of_each):
    """Losses of a batch, and the copies that the host waited for."""
    model = build(row)
    items = [sample((128, 160), boxes) for boxes in boxes_of_each]
    n, grids = len(items), [(-(-128 // s), -(-160 // s)) for s in STRIDES]
    waits = Waits()
    with FakeTensorMode(allow_non_fake_inputs=True), EventStorage():
        on_fake_gpu(model)
        instances = [x["instances"] for x in items]
        for x in instances:
            x.gt_boxes.tensor = torch.empty(len(x), 4, device="cuda")
            x.gt_classes = torch.empty(len(x), dtype=torch.int64, device="cuda")
        with waits:
            features = [torch.empty(n, 32, *grid, device="cuda") for grid in grids]
            predictions = model.head(features)
            images = ImageList(torch.empty(n, 3, 128, 160, device="cuda"), [(128, 160)] * n)
            losses = model.forward_training(images, features, predictions, instances)
    return losses, waits.found


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("counts", [(2, 0), (0, 0)])
def test_neither_head_nor_loss_waits_for_a_gpu(row, counts):
    losses, waits = losses_on_a_fake_gpu(row, [[(20, 10, 70, 60)] * count for count in counts])
    assert {x.device.type for x in losses.values()} == {"cuda"}
    assert not waits


def test_waiting_would_be_noticed():
    waits = Waits()
    with FakeTensorMode(), waits:
        x = torch.empty(3, device="cuda")
        with pytest.raises(DynamicOutputShapeException):
            (x > 0).nonzero()
        with pytest.raises(DynamicOutputShapeException):
            x[x > 0]
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        torch.ones(3).to("cuda", non_blocking=True)
        assert not waits.found
        torch.ones(3).to("cuda")
        x.cpu()
        x.copy_(torch.ones(3))
    assert len(waits.found) == 3
