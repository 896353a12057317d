"""Where a detector's time and arithmetic go: stages of a call, multiply-adds, parameters.

A stage is what some functions of a model cost, without the stages inside them. For example, the FPN's forward calls
that of the bottom-up network, and is charged for its own convolutions only. What belongs to no stage is the ``rest``,
so the stages and the rest add up to the whole.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from clq.modeling.head.feature_alignment import FeatureAlignment
from clq.modeling.head.refinement import SampledBoxes

REST = "rest"
INFERENCE_STAGES = "preprocessing", "backbone", "FPN", "head", "alignment", "compiled network", "decode+NMS", REST
TRAINING_STAGES = "data", "forward", "matching", "loss", "backward", "optimizer", REST
CONVOLUTIONS = "backbone", "FPN", "head", "compiled network"  # stages that consist of convolutions for the most part


class StageFunction(NamedTuple):
    """A function that belongs to a stage.

    Attributes:
        stage: name of the stage.
        owner: object, class or module that has the function.
        attribute: name of the function in its owner.
    """

    stage: str
    owner: object
    attribute: str


def inference_functions(model: nn.Module) -> list[StageFunction]:
    """The functions of a detector that are the stages of its inference.

    A model that lacks a part lacks that stage. The alignment consists of all deformable convolutions whose offsets
    come from boxes, and of TOOD's sampling of the boxes. Two-stage detectors have no head here, so their proposals and
    regions count as rest. A compiled network (``MODEL.CLQ.COMPILE``) is one stage, because clocks inside it would break
    the compiled graph.
    """
    backbone = getattr(model, "backbone", None)
    bottom_up = getattr(backbone, "bottom_up", None)
    functions = [
        StageFunction("preprocessing", model, "preprocess_image"),
        StageFunction("decode+NMS", model, "forward_inference"),
    ]
    if getattr(model, "compiled", False):
        return [*functions, StageFunction("compiled network", model, "predict")]
    functions += [
        StageFunction("backbone" if bottom_up is None else "FPN", backbone, "forward"),
        StageFunction("backbone", bottom_up, "forward"),
        StageFunction("head", getattr(model, "head", None), "forward"),
    ]
    aligning = (m for m in model.modules() if isinstance(m, (FeatureAlignment, SampledBoxes)))
    functions += [StageFunction("alignment", module, "forward") for module in aligning]
    return [function for function in functions if hasattr(function.owner, function.attribute)]


def training_functions(model: nn.Module) -> list[StageFunction]:
    """The functions of a detector that are the stages of the forward pass of its training step.

    The stage ``matching`` is the assigner of a CLQ model, and ``label_anchors`` of Detectron2's RetinaNet and FCOS.
    """
    functions = [
        StageFunction("data", model, "preprocess_image"),
        StageFunction("forward", model, "forward"),
        StageFunction("loss", model, "forward_training"),
        StageFunction("matching", model, "assigner"),
        StageFunction("matching", model, "label_anchors"),
    ]
    return [function for function in functions if hasattr(function.owner, function.attribute)]


class StageMeter:
    """Divides what a call costs among stages.

    Args:
        read: function that reads a counter which never decreases, such as seconds or multiply-adds.

    Attributes:
        spent: by how much the counter grew in each stage, without the stages inside it, by the name of the stage.
    """

    def __init__(self, read: Callable[[], float]):
        self.read = read
        self.spent: dict[str, float] = {}
        self._start()

    @contextlib.contextmanager
    def measuring(self, functions: list[StageFunction]) -> Iterator["StageMeter"]:
        """Measures the code inside the ``with``, in which the given functions are wrapped as their stages."""
        with contextlib.ExitStack() as stack:
            for stage, owner, attribute in functions:
                self.spent[stage] = 0.0
                stack.enter_context(_replaced(owner, attribute, self._metered(stage, getattr(owner, attribute))))
            self._start()
            yield self
            self._charge()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charges the code inside the ``with`` to this stage."""
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _start(self) -> None:
        self._running = [REST]
        self._last = self.read()

    def _charge(self) -> None:
        now, running = self.read(), self._running[-1]
        self.spent[running] = self.spent.get(running, 0.0) + now - self._last
        self._last = now

    def _metered(self, name: str, function: Callable) -> Callable:
        def metered(*args, **kwargs):
            with self.stage(name):
                return function(*args, **kwargs)

        return metered


@contextlib.contextmanager
def _replaced(owner: object, attribute: str, value: object) -> Iterator[None]:
    """Replaces the attribute of an object inside the ``with``; the object may inherit the attribute, or lack it."""
    is_own = attribute in vars(owner)
    before = getattr(owner, attribute, None)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, attribute, before)
        else:
            delattr(owner, attribute)


def synchronized_clock(device: torch.device) -> Callable[[], float]:
    """Returns a clock, in seconds, each reading of which is a host-device synchronization."""
    synchronize = getattr(torch, device.type).synchronize  # in torch.cpu, torch.cuda or torch.mps

    def read() -> float:
        synchronize()
        return time.perf_counter()

    return read


def seconds_by_stage(
    call: Callable[[StageMeter], object], functions: list[StageFunction], device: torch.device
) -> dict[str, float]:
    """Measures the seconds of each stage, and of the rest, of ``call(meter)``.

    Args:
        call: function to measure; it may charge further stages to the meter that it gets.
        functions: functions that are stages.
        device: device on which the call runs.
    """
    with StageMeter(synchronized_clock(device)).measuring(functions) as meter:
        call(meter)
    return meter.spent


def count_parameters(model: nn.Module) -> int:
    """Counts the values of all parameters, including frozen ones; buffers, such as those of FrozenBN, do not count."""
    return sum(p.numel() for p in model.parameters())


def count_flops(model: nn.Module, size: tuple[int, int]) -> float:
    """Counts the multiply-adds of the inference of one image; see :func:`flops_by_stage`."""
    return sum(flops_by_stage(model, size).values())


def flops_by_stage(model: nn.Module, size: tuple[int, int]) -> dict[str, float]:
    """Counts the multiply-adds of each stage of the inference of one image.

    A multiply-add counts once, as in fvcore and in published tables, and not as two operations. All convolutions
    (including deformable ones) and matrix products that run are counted, whatever module calls them, with or without
    autocast. Biases, normalization, activations, bilinear sampling, resizing, decoding and NMS are not counted, and
    neither are Detectron2's own compiled deformable convolutions, which torch cannot see.

    Args:
        model: detector with Detectron2's interface.
        size: (H, W) of the network's input in pixels, before the padding that the backbone needs.
    """
    image = torch.zeros(3, *size, dtype=torch.uint8)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _deform_conv2d_flops})
    meter = StageMeter(lambda: counter.get_total_flops() / 2)  # torch counts two operations for each
    was_training = model.training
    model.eval()
    try:
        # A compiled network runs uncompiled here, because the counter sees the operations of torch but no kernels.
        with torch.no_grad(), counter, meter.measuring(inference_functions(model)), _replaced(model, "compiled", False):
            model([{"image": image}])
    finally:
        model.train(was_training)
    return meter.spent


def _deform_conv2d_flops(x_shape, weight_shape, *args, out_shape, **kwargs) -> int:
    """Operations of torchvision's deformable convolution, which are those of a convolution without the sampling."""
    return conv_flop_count(x_shape, weight_shape, out_shape)
