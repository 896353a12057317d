"""Batches in whole detectors: padding, ignored locations, images with several objects or none, weights of losses."""

import itertools

import pytest
import torch
from clq.modeling.assign.atss import match_atss
from clq.modeling.structures import Predictions
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, ImageList, pairwise_iou
from tiny_detectors import STRIDES, build, sample


def grids_of(size):
    return [(-(-size[0] // s), -(-size[1] // s)) for s in STRIDES]


def raw_predictions(model, size, n=1):
    """Random outputs of a head for n images of a size."""
    channels, quality = (5, model.loss.coder.num_channels), model.loss.quality_target is not None
    levels = [[torch.randn(n, c, *g) for g in grids_of(size)] for c in (*channels, 1)]
    return Predictions(*levels[:2], levels[2] if quality else [], [])


def losses_of(model, sizes, padded, predictions, items):
    images = ImageList(torch.zeros(len(sizes), 3, *padded), sizes)
    features = [torch.zeros(len(sizes), 1, *g) for g in grids_of(padded)]
    return model.forward_training(images, features, predictions, [x["instances"] for x in items])


@pytest.mark.parametrize("variant", ["atss", "atss_qfl", "clq", "gfl", "gflv2"])
def test_the_padding_of_the_batch_takes_no_part(variant):
    """An image has the same losses alone and beside a larger one, whose size adds padding with arbitrary outputs.

    If the padding held candidates, the larger box would have other positives. The other image has no objects and is
    predicted so; it counts as one positive.
    """
    model = build(variant)
    size, own, padded = (70, 100), (96, 128), (192, 224)
    item, empty = sample(size, [(0, 0, 99, 69), (60, 40, 99, 69)]), sample(padded)
    alone, beside = raw_predictions(model, own), raw_predictions(model, padded, n=2)
    for level, mine in zip(itertools.chain(*beside), itertools.chain(*alone), strict=True):
        level[0] = 40.0
        level[0, :, : mine.shape[2], : mine.shape[3]] = mine[0]
    for level in beside.cls_logits:
        level[1] = -60.0
    expected = losses_of(model, [size], own, alone, [item])
    (matched, _) = match_atss(grids_of(own), STRIDES, item["instances"].gt_boxes.tensor)
    n = int((matched >= 0).sum())
    assert n > 3
    weighted = set() if variant == "atss_qfl" else {"loss_box", "loss_dfl"}
    for sizes, items, order in (([size, padded], [item, empty], [0, 1]), ([padded, size], [empty, item], [1, 0])):
        swapped = Predictions(*([x[order] for x in levels] for levels in beside))
        losses = losses_of(model, sizes, padded, swapped, items)
        for name, value in expected.items():
            factor = 1.0 if name in weighted else n / (n + 1)
            torch.testing.assert_close(losses[name], value * factor)


def test_the_class_loss_covers_exactly_the_image_without_padding():
    """An image ends at its own size, rounded up to 32 pixels and then to whole strides of each level."""
    model, sizes, padded = build("clq"), [(33, 100), (160, 5), (96, 224)], (160, 224)
    out = raw_predictions(model, padded, n=3)
    for level in out.cls_logits:
        level.requires_grad_()
    sum(losses_of(model, sizes, padded, out, [sample(s) for s in sizes]).values()).backward()
    own = [[(8, 16), (4, 8), (2, 4), (1, 2), (1, 1)], [(20, 4), (10, 2), (5, 1), (3, 1), (2, 1)], grids_of((96, 224))]
    for i, grids in enumerate(own):
        for level, (h, w) in zip(out.cls_logits, grids, strict=True):
            expected = torch.zeros_like(level[i], dtype=torch.bool)
            expected[:, :h, :w] = True
            assert torch.equal(level.grad[i] != 0, expected)


def test_ignored_locations_have_no_class_loss():
    """Those between the thresholds of the assignment by IoU, as Detectron2's matcher labels them."""
    model, size = build("max_iou"), (96, 128)
    item = sample(size, [(20, 10, 70, 60), (60, 30, 120, 90), (30, 40, 62, 72)])
    out = raw_predictions(model, size)
    for level in out.cls_logits:
        level.requires_grad_()
    losses_of(model, [size], size, out, [item])["loss_cls"].backward()
    anchors = Boxes.cat(model.anchor_generator(out.cls_logits))
    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
    _, labels = matcher(pairwise_iou(item["instances"].gt_boxes, anchors))
    learns = torch.cat([x.grad.flatten(2).any(dim=1).flatten() for x in out.cls_logits])
    assert (labels == -1).sum() > 3
    assert torch.equal(learns, labels != -1)


def test_boxes_and_classes_belong_to_their_own_image():
    """A loss of the batch is the mean of the images' losses, weighted by their positives; no positives count as one."""
    model = build("atss_lqe")
    items = [
        sample((96, 128), [(20, 10, 70, 60), (60, 30, 120, 90)]),
        sample((96, 128)),
        sample((96, 128), [(5, 40, 60, 95)]),
    ]
    items[2]["instances"].gt_classes += 3
    out = raw_predictions(model, (96, 128), n=3)
    numbers, parts = [], []
    for i, item in enumerate(items):
        matched, _ = match_atss(grids_of((96, 128)), STRIDES, item["instances"].gt_boxes.tensor)
        numbers.append(max(int((matched >= 0).sum()), 1))
        alone = Predictions(*([x[i : i + 1] for x in levels] for levels in out))
        parts.append(losses_of(model, [(96, 128)], (96, 128), alone, [item]))
    together = losses_of(model, [(96, 128)] * 3, (96, 128), out, items)
    for name, value in together.items():
        expected = sum(n * p[name] for n, p in zip(numbers, parts, strict=True)) / sum(numbers)
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    ("variant", "key", "value", "factor", "name"),
    [
        ("clq", "BOX.LOSS_WEIGHT", 3.0, 1.5, "loss_box"),
        ("atss", "BOX.LOSS_WEIGHT", 1.0, 0.5, "loss_box"),
        ("clq", "QUALITY.LOSS_WEIGHT", 0.5, 0.5, "loss_quality"),
        ("gfl", "BOX.DFL_WEIGHT", 1.0, 4.0, "loss_dfl"),
        ("atss_qfl", "CLS.BETA", 1.0, 2.0, "loss_cls"),
        ("atss", "CLS.FOCAL_GAMMA", 1.0, 2.0, "loss_cls"),
        ("atss", "CLS.FOCAL_ALPHA", 0.625, 0.5, "loss_cls"),
    ],
)
def test_each_setting_changes_its_own_loss_alone(variant, key, value, factor, name):
    """For the class loss the image has no objects and logits of 0: factors (1/2)^beta, (1/2)^gamma, 1 - alpha."""
    items = [sample((96, 128), [] if name == "loss_cls" else [(20, 10, 70, 60)])]
    results = []
    for opts in ((), (f"MODEL.CLQ.{key}", value)):
        model = build(variant, *opts)
        torch.manual_seed(1)
        out = raw_predictions(model, (96, 128))
        out = out._replace(cls_logits=[torch.zeros_like(x) for x in out.cls_logits])
        results.append(losses_of(model, [(96, 128)], (96, 128), out, items))
    for loss, value in results[0].items():
        torch.testing.assert_close(results[1][loss], value * (factor if loss == name else 1.0))
