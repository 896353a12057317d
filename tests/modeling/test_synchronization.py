"""The loss leaves a GPU alone: no size, count or value of it is asked for while it works.

The GPU is one of torch's fake tensors, which have shapes and devices and no values: asking for a value, and most
operations whose shape depends on one, raise; copies and indices that wait are told by their arguments. The backward
pass cannot run there; of its nodes, the one that is known to wait is looked for.
"""

import pytest
import torch
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from tiny_detectors import VARIANTS, STRIDES, build, sample
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

COPIES = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default
INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)


class Waits(TorchDispatchMode):
    """Records copies between devices that the host waits for, and indexing by masks or by indices of the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        waits = False
        if func is COPIES[0]:
            waits = out.device != args[0].device and not kwargs.get("non_blocking", False)
        elif func is COPIES[1]:
            waits = args[0].device != args[1].device and not any(args[2:])
        elif func in INDEXING and args[0].is_cuda:
            waits = any(i is not None and (i.dtype == torch.bool or not i.is_cuda) for i in args[1])
        if waits:
            self.found.append(str(func))
        return out


def backward_nodes(losses):
    """Names of the autograd nodes behind the losses."""
    names, seen, todo = set(), set(), [x.grad_fn for x in losses.values()]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.add(type(node).__name__)
            todo += [next_node for next_node, _ in node.next_functions]
    return names


def on_fake_gpu(model):
    """Moves a model's constants and parameters to a GPU that is not there."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = torch.empty(
                        tensor.shape, dtype=tensor.dtype, device="cuda", requires_grad=tensor.requires_grad
                    )


def losses_on_a_fake_gpu(variant, boxes_of_each):
    """Losses of a batch, and the copies that the host waited for."""
    model = build(variant)
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


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("counts", [(2, 0), (0, 0)])
def test_neither_head_nor_loss_waits_for_a_gpu(variant, counts):
    losses, waits = losses_on_a_fake_gpu(variant, [[(20, 10, 70, 60)] * count for count in counts])
    assert {x.device.type for x in losses.values()} == {"cuda"}
    assert not waits
    nodes = backward_nodes(losses)
    assert "ConvolutionBackward0" in nodes and not nodes & {"ProdBackward0", "ProdBackward1"}  # prod looks for zeros


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
        x[x > 0] = torch.ones(3, device="cuda")
        x[torch.zeros(1, dtype=torch.int64)] = 1.0
    assert len(waits.found) == 5
    x = torch.ones(2, 2, requires_grad=True)
    assert "ProdBackward1" in backward_nodes({"a": x.prod(dim=1).sum()})
