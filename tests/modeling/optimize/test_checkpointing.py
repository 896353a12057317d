"""A batch in parts, and recomputed stages of the backbone, have the same gradients and need less memory."""

import weakref

import clq
import pytest
import torch
from clq.errors import UserError
from clq.modeling.optimize.checkpointing import RecomputedStage, checkpointed
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tiny_detectors import CONFIGS, build, sample
from torch import nn


def uneven_batch():
    """Four images of four sizes with 3, 0, 1 and 2 objects. Padded for themselves, the parts would have other sizes."""
    torch.manual_seed(1)
    return [
        sample((96, 128), [(20, 10, 70, 60), (60, 30, 120, 90), (5, 5, 40, 90)]),
        sample((64, 64)),
        sample((40, 200), [(50, 2, 150, 38)]),
        sample((160, 33), [(2, 80, 30, 150), (4, 10, 20, 60)]),
    ]


def losses_and_gradients(model, batch, dtype=None):
    """Losses and gradients by name, computed under autocast with this type unless it is None."""
    with torch.autocast("cpu", dtype, enabled=dtype is not None), EventStorage():
        losses = model(batch)
    model.zero_grad()
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {name: x.detach() for name, x in losses.items()}, gradients


def assert_same(found, expected, rtol):
    """Asserts that the losses, and the gradients as one vector, agree within ``rtol``.

    The gradient of a single tensor may differ by more, because its terms nearly cancel in front of a normalization.
    """
    (losses, gradients), (expected_losses, expected_gradients) = found, expected
    torch.testing.assert_close(losses, expected_losses, rtol=rtol, atol=0)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(value.abs().max().item() for value in expected_gradients.values())
    for name, value in expected_gradients.items():
        atol = rtol * max(100 * value.abs().max().item(), largest)
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=atol, msg=name)
    ours, theirs = (torch.cat([x.flatten() for x in g.values()]) for g in (gradients, expected_gradients))
    assert (ours - theirs).norm() <= rtol * theirs.norm()


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("variant", ["atss", "clq", "atss_clq", "gfl", "gflv2", "vfnet", "tood", "tood_warmup"])
def test_a_batch_in_parts_has_the_gradients_of_the_batch(variant, parts):
    whole, split = build(variant), build(variant, "SOLVER.ACCUMULATE", parts)
    batch = uneven_batch()
    losses, gradients = losses_and_gradients(whole, batch)
    assert_same(losses_and_gradients(split, batch), (losses, gradients), 1e-5)
    # The plain average over the parts would be another loss.
    alone = [losses_and_gradients(whole, [item])[0] for item in batch]
    mean = {name: sum(x[name] for x in alone) / len(batch) for name in losses}
    assert all(abs(mean[name] / value - 1) > 0.01 for name, value in losses.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parts_have_the_gradients_of_the_batch_under_autocast(dtype):
    batch = uneven_batch()
    expected = losses_and_gradients(build("clq"), batch, dtype)
    assert_same(losses_and_gradients(build("clq", "SOLVER.ACCUMULATE", 4), batch, dtype), expected, 0.02)


def test_at_most_one_part_is_in_memory_at_any_time():
    """Between the passes no feature of the pyramid is alive, and in the backward pass those of one part at a time."""
    model = build("clq", "SOLVER.ACCUMULATE", 4)
    alive, sizes, counts = set(), [], []

    def watch(module, inputs, features):
        sizes.append(len(inputs[0]))
        value = features["p3"]
        alive.add(id(value))
        weakref.finalize(value, alive.discard, id(value))
        counts.append(len(alive))

    model.backbone.register_forward_hook(watch)
    with EventStorage():
        losses = model(uneven_batch())
    assert sizes == [1] * 4 and not alive
    sum(losses.values()).backward()
    assert sizes == [1] * 8 and not alive
    assert max(counts) == 1


def resnet_detector(*opts):
    """CLQ with 32 channels on a ResNet-18 with frozen stem and res2."""
    torch.manual_seed(0)
    small = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 32]
    small += ["MODEL.CLQ.CONV_DIM", 32, "MODEL.CLQ.NUM_CONVS", 1, "MODEL.CLQ.NUM_CLASSES", 5, "DATASETS.TRAIN", []]
    opts = [*small, "MODEL.DEVICE", "cpu", *opts]
    return build_model(clq.setup_cfg(str(CONFIGS / "CLQ/clq_R_50_FPN_1x.yaml"), opts))


BATCH_NORM = "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0


@pytest.mark.parametrize("opts", [(), BATCH_NORM, ("SOLVER.ACCUMULATE", 2), (*BATCH_NORM, "SOLVER.ACCUMULATE", 2)])
def test_a_recomputed_backbone_has_the_same_gradients_and_statistics(opts):
    plain, model = resnet_detector(*opts), resnet_detector(*opts, "MODEL.CLQ.CHECKPOINT_BACKBONE", True)
    batch = uneven_batch()
    assert_same(losses_and_gradients(model, batch), losses_and_gradients(plain, batch), 1e-5)
    assert model.state_dict().keys() == plain.state_dict().keys()
    for (name, x), y in zip(model.named_buffers(), plain.buffers(), strict=True):
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(x, y, msg=name)


def test_exactly_the_stages_that_are_not_frozen_are_recomputed():
    model = resnet_detector("MODEL.CLQ.CHECKPOINT_BACKBONE", True)
    backbone, calls = model.backbone.bottom_up, []
    assert [type(x) is RecomputedStage for x in backbone.stages] == [False, True, True, True]
    assert [getattr(backbone, name) for name in backbone.stage_names] == backbone.stages
    for name, stage in zip(backbone.stage_names, backbone.stages, strict=True):
        stage[0].register_forward_hook(lambda *_, name=name: calls.append(name))
    losses_and_gradients(model, uneven_batch())
    assert calls == ["res2", "res3", "res4", "res5", "res5", "res4", "res3"]
    calls.clear()
    model.eval()
    with torch.no_grad():
        model(uneven_batch()[:1])
    assert calls == ["res2", "res3", "res4", "res5"]


def test_a_backbone_without_stages_is_refused():
    with pytest.raises(UserError, match=r"MODEL\.CLQ\.CHECKPOINT_BACKBONE: .*; set it to False"):
        build("clq", "MODEL.CLQ.CHECKPOINT_BACKBONE", True)


def test_running_statistics_are_updated_once_although_the_forward_pass_runs_twice():
    norm, x = nn.BatchNorm2d(3, momentum=0.5), torch.randn(2, 3, 4, 4, requires_grad=True)
    checkpointed(norm, norm, x).sum().backward()
    torch.testing.assert_close(norm.running_mean, 0.5 * x.detach().mean(dim=(0, 2, 3)))
    assert norm.momentum == 0.5
