"""Where a detector's time and arithmetic go: stages of a call, multiply-adds, parameters.

A stage is time spent in some functions of a model, without that of the stages inside them: the FPN's forward calls the
bottom-up network's, and is charged for its own convolutions alone. What no stage claims is the ``rest``; so stages and
rest sum to the whole by construction.
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
CONVOLUTIONS = "backbone", "FPN", "head", "compiled network"  # stages that are convolutions for the most part


class Place(NamedTuple):
    """A function that belongs to a stage: ``getattr(owner, attribute)``."""

    stage: str
    owner: object
    attribute: str


def inference_places(model: nn.Module) -> list[Place]:
    """Where the stages of a detector's inference begin and end; a model that lacks a part lacks that stage.

    The alignment is every deformable convolution that follows a box, and TOOD's sampling of the boxes. Detectors that
    are no :class:`DenseDetector` (two-stage ones) have no head here: proposals and regions are their rest. A compiled
    network (``MODEL.CLQ.COMPILE``) is one stage: a clock inside would have it cut in pieces.
    """
    backbone = getattr(model, "backbone", None)
    bottom_up = getattr(backbone, "bottom_up", None)
    places = [Place("preprocessing", model, "preprocess_image"), Place("decode+NMS", model, "forward_inference")]
    if getattr(model, "compiled", False):
        return [*places, Place("compiled network", model, "predict")]
    places += [
        Place("backbone" if bottom_up is None else "FPN", backbone, "forward"),
        Place("backbone", bottom_up, "forward"),
        Place("head", getattr(model, "head", None), "forward"),
    ]
    aligning = (m for m in model.modules() if isinstance(m, (FeatureAlignment, SampledBoxes)))
    places += [Place("alignment", module, "forward") for module in aligning]
    return [place for place in places if hasattr(place.owner, place.attribute)]


def training_places(model: nn.Module) -> list[Place]:
    """Where the stages of a training step's forward pass begin and end; its other stages are the caller's own.

    Matching is the assigner of this project's detectors, and ``label_anchors`` of Detectron2's RetinaNet and FCOS.
    """
    places = [
        Place("data", model, "preprocess_image"),
        Place("forward", model, "forward"),
        Place("loss", model, "forward_training"),
        Place("matching", model, "label_anchors"),
        Place("matching", model, "assigner"),
    ]
    return [place for place in places if hasattr(place.owner, place.attribute)]


class StageMeter:
    """Splits what a call consumes among stages.

    Args:
        read: a reading that only grows: seconds, multiply-adds.

    Attributes:
        spent: name of each stage -> what was read in it, without the stages inside it.
    """

    def __init__(self, read: Callable[[], float]):
        self.read = read
        self.spent: dict[str, float] = {}
        self._start()

    @contextlib.contextmanager
    def on(self, places: list[Place]) -> Iterator["StageMeter"]:
        """Measures what runs inside the ``with``, the functions of the places as their stages; then undoes that."""
        with contextlib.ExitStack() as stack:
            for stage, owner, attribute in places:
                self.spent[stage] = 0.0
                stack.enter_context(_replaced(owner, attribute, self._metered(stage, getattr(owner, attribute))))
            self._start()
            yield self
            self._charge()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charges what runs inside the ``with`` to this stage."""
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
    """Another value in an object's attribute, which may be one of its class's, or one that it does not have."""
    own = attribute in vars(owner)
    before = getattr(owner, attribute, None)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, attribute, before)
        else:
            delattr(owner, attribute)


def synchronized_clock(device: torch.device) -> Callable[[], float]:
    """A clock, in seconds, that waits for what was queued on the device before it is read."""
    wait = getattr(torch, device.type).synchronize  # of torch.cpu, torch.cuda, torch.mps

    def read() -> float:
        wait()
        return time.perf_counter()

    return read


def seconds_by_stage(call: Callable[[StageMeter], object], places: list[Place], device: torch.device) -> dict:
    """Seconds of each stage, and of the rest, of ``call(meter)``."""
    with StageMeter(synchronized_clock(device)).on(places) as meter:
        call(meter)
    return meter.spent


def count_parameters(model: nn.Module) -> int:
    """Numbers in all parameters, frozen ones too; buffers, such as FrozenBN's, are none."""
    return sum(p.numel() for p in model.parameters())


def count_flops(model: nn.Module, size: tuple[int, int]) -> float:
    """Multiply-adds of one image's inference; see :func:`flops_by_stage`."""
    return sum(flops_by_stage(model, size).values())


def flops_by_stage(model: nn.Module, size: tuple[int, int]) -> dict[str, float]:
    """Multiply-adds of each stage of one image's inference.

    One multiply-add is one, as fvcore and this field's tables have it; twice that is operations. Counted are the ops
    that run: convolutions (deformable ones too) and matrix products, whatever module calls them, with or without
    autocast. Not counted: biases, normalisation, activations, bilinear sampling, resizing, decoding, NMS; nor
    Detectron2's own compiled deformable convolutions, which torch does not see.

    Args:
        model: a detector of Detectron2's interface.
        size: (H, W) of the network's input in pixels, before the padding that the backbone asks for.
    """
    image = torch.zeros(3, *size, dtype=torch.uint8)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _deform_conv2d_flops})
    meter = StageMeter(lambda: counter.get_total_flops() / 2)  # torch counts operations
    was_training = model.training
    model.eval()
    try:
        # What is compiled is counted as it was written: the counter sees torch's operations, not kernels made of them.
        with torch.no_grad(), counter, meter.on(inference_places(model)), _replaced(model, "compiled", False):
            model([{"image": image}])
    finally:
        model.train(was_training)
    return meter.spent


def _deform_conv2d_flops(x_shape, weight_shape, *args, out_shape, **kwargs) -> int:
    """Operations of torchvision's op, from shapes: those of the convolution, sampling left out."""
    return conv_flop_count(x_shape, weight_shape, out_shape)
