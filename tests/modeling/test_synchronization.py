"""The loss causes no host-device synchronization: the host asks for no size, count or value of the GPU.

The GPU is one of torch's fake tensors, which have shapes and devices but no values. Most operations whose shape depends
on a value raise there. Reading a value, a copy that the host waits for, and an index that is a mask or on the host are
recorded. The backward pass cannot run there, so its nodes are searched for the one that is known to synchronize.
"""

import pytest
import torch
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from tiny_detectors import STRIDES, VARIANTS, build, sample
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.skipif(torch.__version__ < (2, 11), reason="older fake tensors cannot stand for a GPU here")
READ_VALUE = torch.ops.aten._local_scalar_dense.default
COPIES = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default
INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)
# The assignment by IoU is the one that reads a value: it counts its positives, whose number follows from no bound.
EXPECTED = {"max_iou": [str(READ_VALUE)]}
COUNT = 7  # what reading a value gives on the fake GPU


class Synchronizations(TorchDispatchMode):
    """Records the operations that synchronize the host with the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is READ_VALUE and args[0].is_cuda:
            self.found.append(str(func))
            return COUNT
        out = func(*args, **(kwargs or {}))
        synchronizes = False
        if func is COPIES[0]:
            synchronizes = out.device != args[0].device and not kwargs.get("non_blocking", False)
        elif func is COPIES[1]:
            synchronizes = args[0].device != args[1].device and not any(args[2:])
        elif func in INDEXING and args[0].is_cuda:
            synchronizes = any(i is not None and (i.dtype == torch.bool or not i.is_cuda) for i in args[1])
        if synchronizes:
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


def move_to_fake_gpu(model):
    """Replaces a model's constants and parameters by tensors on a GPU that does not exist."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = torch.empty(
                        tensor.shape, dtype=tensor.dtype, device="cuda", requires_grad=tensor.requires_grad
                    )


def losses_on_a_fake_gpu(variant, boxes_of_each):
    """Losses of a batch, and the operations that synchronized the host with the device."""
    model = build(variant)
    items = [sample((128, 160), boxes) for boxes in boxes_of_each]
    n, grids = len(items), [(-(-128 // s), -(-160 // s)) for s in STRIDES]
    synchronizations = Synchronizations()
    with FakeTensorMode(allow_non_fake_inputs=True), EventStorage():
        move_to_fake_gpu(model)
        instances = [x["instances"] for x in items]
        for x in instances:
            x.gt_boxes.tensor = torch.empty(len(x), 4, device="cuda")
            x.gt_classes = torch.empty(len(x), dtype=torch.int64, device="cuda")
        with synchronizations:
            features = [torch.empty(n, 32, *grid, device="cuda") for grid in grids]
            predictions = model.head(features)
            images = ImageList(torch.empty(n, 3, 128, 160, device="cuda"), [(128, 160)] * n)
            losses = model.forward_training(images, features, predictions, instances)
    return losses, synchronizations.found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("counts", [(2, 0), (0, 0)])
def test_neither_head_nor_loss_synchronizes(variant, counts):
    """Except for the one count of the assignment by IoU."""
    losses, found = losses_on_a_fake_gpu(variant, [[(20, 10, 70, 60)] * count for count in counts])
    assert {x.device.type for x in losses.values()} == {"cuda"}
    assert found == EXPECTED.get(variant, [])
    nodes = backward_nodes(losses)
    assert "ConvolutionBackward0" in nodes and not nodes & {"ProdBackward0", "ProdBackward1"}  # prod looks for zeros


def test_synchronizations_would_be_found():
    synchronizations = Synchronizations()
    with FakeTensorMode(), synchronizations:
        x = torch.empty(3, device="cuda")
        with pytest.raises(DynamicOutputShapeException):
            (x > 0).nonzero()
        with pytest.raises(DynamicOutputShapeException):
            x[x > 0]
        torch.ones(3).to("cuda", non_blocking=True)
        assert not synchronizations.found
        assert int(x.sum()) == COUNT
        torch.ones(3).to("cuda")
        x.cpu()
        x.copy_(torch.ones(3))
        x[x > 0] = torch.ones(3, device="cuda")
        x[torch.zeros(1, dtype=torch.int64)] = 1.0
    assert len(synchronizations.found) == 6
    x = torch.ones(2, 2, requires_grad=True)
    assert "ProdBackward1" in backward_nodes({"a": x.prod(dim=1).sum()})
