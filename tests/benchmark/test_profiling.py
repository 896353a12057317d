"""Stages, multiply-adds and parameters of models."""

import itertools

import clq
import pytest
import torch
from clq.benchmark.profiling import (
    StageMeter,
    count_flops,
    count_parameters,
    flops_by_stage,
    inference_functions,
    training_functions,
)
from clq.benchmark.synthetic import random_image
from clq.modeling.head.feature_alignment import BACKENDS, FeatureAlignment, GeometricOffsets
from detectron2.layers import Conv2d
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

RETINANET = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5"]]
# The tiny config's 32 channels, 2 classes on 12x12 + 6x6 + 3x3 = 189 locations of a 96x96 image.
TINY_FLOPS = {
    # 7x7 stem on 48x48; four 3x3 in res2 on 24x24; res3, res4 and res5, whose 1x1 shortcuts make them equal
    "backbone": 48 * 48 * 64 * 3 * 49
    + 24 * 24 * 4 * 64 * 64 * 9
    + 3 * (12 * 12 * (64 * 128 * 9 + 3 * 128 * 128 * 9 + 64 * 128)),
    "FPN": (144 * 128 + 36 * 256 + 9 * 512) * 32 + 189 * 32 * 32 * 9,
    "head": 189 * (2 * 32 * 32 * 9 + (2 + 4 * 17 + 1) * 32 * 9),  # two towers of one layer; classes, box, quality
    "alignment": 189 * (4 * 4 * 18 + 32 * 32 * 9),  # offsets in four groups, deformable convolution
}


class HandCounted(nn.Module):
    """One layer of each kind; the first, Detectron2's wrapper, halves an image of 16x32 to 8x16."""

    def __init__(self, backend):
        super().__init__()
        self.first = Conv2d(3, 8, 3, stride=2, padding=1, bias=False, norm=nn.BatchNorm2d(8))
        self.grouped = nn.Conv2d(8, 8, 1, groups=4)
        self.align = FeatureAlignment(8, GeometricOffsets(), backend)
        self.linear = nn.Linear(8, 5)

    def forward(self, batched_inputs):
        x = self.grouped(self.first(batched_inputs[0]["image"].float()[None]))
        x = self.align(x, torch.ones(1, 4, 8, 16))
        return self.linear(x.flatten(2).transpose(1, 2))


def build(tiny, *opts):
    torch.manual_seed(0)
    return build_model(clq.setup_cfg(tiny, opts))


def test_a_stage_does_not_include_the_stages_inside_it():
    now = 0.0

    class Model:
        def outer(self):
            spend(1)
            self.inner()
            spend(2)

        def inner(self):
            spend(4)

    def spend(amount):
        nonlocal now
        now += amount

    model = Model()
    meter = StageMeter(lambda: now)
    spend(8)  # before the measurement, so it counts nowhere
    with meter.measuring([("outer", model, "outer"), ("inner", Model, "inner")]):
        spend(16)
        model.outer()
        with meter.stage("extra"):
            spend(32)
            model.inner()
    assert meter.spent == {"outer": 3, "inner": 8, "extra": 32, "rest": 16}
    assert vars(model) == {} and "metered" not in Model.inner.__qualname__  # the functions are restored


def test_functions_are_restored_after_an_error():
    class Model:
        def fail(self):
            raise ZeroDivisionError

    model = Model()
    with pytest.raises(ZeroDivisionError), StageMeter(float).measuring([("stage", model, "fail")]):
        model.fail()
    assert vars(model) == {}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_multiply_adds_are_those_counted_by_hand(backend, autocast):
    """At 128 locations: 3x3 from 3 to 8 channels, 1x1 in four groups of 2, deformable 3x3, fully connected."""
    model = HandCounted(backend)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        counted = count_flops(model, (16, 32))
    assert counted == 128 * (3 * 9 * 8 + 8 * 2 + 8 * 9 * 8 + 8 * 5)
    assert model.training


def test_parameters_are_those_counted_by_hand():
    model = HandCounted("gather")
    assert count_parameters(model) == (3 * 9 * 8 + 2 * 8) + (8 * 2 + 8) + 8 * 9 * 8 + (
        8 * 5 + 5
    )  # a norm has 2 per channel


def test_multiply_adds_of_a_detector_are_those_counted_by_hand(tiny):
    counted = flops_by_stage(build(tiny), (96, 96))
    assert {stage: value for stage, value in counted.items() if value} == TINY_FLOPS
    # An image of 90x70 is padded to multiples of 32.
    assert count_flops(build(tiny), (90, 70)) == count_flops(build(tiny), (96, 96))


@pytest.mark.parametrize("opts", [[], RETINANET])
def test_all_stages_of_a_detector_are_found(tiny, opts):
    """A clock that ticks at each reading shows that every stage is entered and that the stages add up."""
    ticks = itertools.count()
    model = build(tiny, *opts)
    with torch.no_grad(), StageMeter(lambda: next(ticks)).measuring(inference_functions(model.eval())) as meter:
        model([random_image(96, 96)])
    alignment = set() if opts else {"alignment"}
    assert set(meter.spent) == {"preprocessing", "backbone", "FPN", "head", "decode+NMS", "rest"} | alignment
    assert all(meter.spent.values()) and sum(meter.spent.values()) == next(ticks) - 2  # less two readings

    ticks, before = itertools.count(), getattr(model, "assigner", None)
    with EventStorage(), StageMeter(lambda: next(ticks)).measuring(training_functions(model.train())) as meter:
        model([random_image(96, 96)])
    assert getattr(model, "assigner", None) is before and "forward" not in vars(model)
    assert set(meter.spent) == {"data", "forward", "matching", "loss", "rest"}
    assert all(meter.spent.values()) and sum(meter.spent.values()) == next(ticks) - 2


def test_a_compiled_network_is_one_stage(tiny, monkeypatch):
    """It runs uncompiled while its arithmetic is counted, because compiling would take long."""
    monkeypatch.setattr(torch, "compile", lambda function, mode: pytest.fail("compiled"))
    model = build(tiny, "MODEL.CLQ.COMPILE", True)
    counted = flops_by_stage(model, (96, 96))
    assert {stage: value for stage, value in counted.items() if value} == {"compiled network": sum(TINY_FLOPS.values())}
    assert model.compiled


def test_task_aligned_matching_is_a_stage_too(tiny):
    tood = ["MODEL.CLQ.ASSIGN.NAME", "task", "MODEL.CLQ.ASSIGN.WARMUP", 0.0]
    model, ticks = build(tiny, *tood), itertools.count()
    with StageMeter(lambda: next(ticks)).measuring(training_functions(model)) as meter:
        model([random_image(96, 96)])
    assert meter.spent["matching"]
