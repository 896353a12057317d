"""From an assignment to targets, and that padding entries change no loss and no gradient."""

import pytest
import torch
from clq.modeling.assign.base import Assignment
from clq.modeling.criterion import DetectionLoss, gather, make_targets, nonzero_padded
from clq.modeling.structures import Predictions
from detectron2.utils.events import EventStorage
from tiny_detectors import VARIANTS, build, sample
from torch import tensor

# Two images of three locations, the first without objects.
ANCHORS = tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8]])
GT_BOXES = [torch.zeros(0, 4), tensor([[1.0, 1, 7, 7], [15, 0, 25, 9]])]
GT_CLASSES = [torch.zeros(0, dtype=torch.int64), tensor([4, 2])]
MATCHED = tensor([[-1, -1, -1], [0, -1, 1]])
VALID = tensor([[True, True, True], [True, True, False]])


def targets_of(assignment):
    return make_targets(assignment, GT_BOXES, GT_CLASSES, anchors=ANCHORS, valid=VALID)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("spare", [0, 5])
def test_nonzero_padded_begins_with_the_indices_of_nonzero(share, spare):
    torch.manual_seed(0)
    mask = torch.rand(40) < share
    expected = mask.nonzero().squeeze(1)
    size = min(len(expected) + spare, 40)
    index, is_true = nonzero_padded(mask, size)
    assert index.dtype == torch.int64 and len(index) == size
    assert torch.equal(index[is_true], expected) and is_true[: len(expected)].all()
    padding = index[~is_true].tolist()
    assert len(set(padding)) == len(padding) and all(0 <= i < 40 for i in padding)


def test_targets_by_hand():
    """At most four positives, of which there are two."""
    targets = targets_of(Assignment(MATCHED, max_positives=4))
    assert targets.is_positive.tolist() == [True, True, False, False]
    assert (targets.image[:2].tolist(), targets.location[:2].tolist()) == ([1, 1], [0, 2])
    assert targets.gt_classes[:2].tolist() == [4, 2]
    assert torch.equal(targets.gt_boxes, torch.cat((GT_BOXES[1], ANCHORS[targets.location[2:]])))
    assert targets.num_pos == 1 + 2 and targets.alignment_metric is None
    assert torch.equal(targets.valid, VALID)


def test_there_are_no_more_entries_than_locations():
    targets = targets_of(Assignment(MATCHED, max_positives=99))
    assert len(targets.location) == 6
    assert targets.is_positive.sum() == 2


def test_the_alignment_metric_is_gathered_and_its_sum_is_the_normalizer():
    metric = tensor([[0.0, 0, 0], [0.5, 0, 0.25]])
    targets = targets_of(Assignment(MATCHED, max_positives=3, alignment_metric=metric))
    assert targets.alignment_metric[:2].tolist() == [0.5, 0.25]
    assert targets.num_pos == 0.75


def test_ignored_locations_take_no_part_like_padding():
    ignored = tensor([[True, False, False], [False, True, False]])
    targets = targets_of(Assignment(MATCHED, max_positives=2, ignored=ignored))
    assert targets.valid.tolist() == [[False, True, True], [True, False, False]]


def test_gather_gives_zero_and_no_gradient_at_padding_entries():
    """Even where the values there are not numbers."""
    targets = targets_of(Assignment(MATCHED, max_positives=4))
    x = torch.full((2, 3, 2), torch.nan)
    x[1, 0], x[1, 2] = tensor([1.0, 2.0]), tensor([3.0, 4.0])
    x.requires_grad_()
    assert gather(x, targets).tolist() == [[1, 2], [3, 4], [0, 0], [0, 0]]
    gather(x, targets).sum().backward()
    assert torch.equal(x.grad.sum(dim=2), tensor([[0.0, 0, 0], [2, 0, 2]]))


def keep_positives(targets):
    """The same targets without padding entries."""
    names = "image", "location", "is_positive", "gt_boxes", "gt_classes", "alignment_metric"
    kept = {name: x[targets.is_positive] for name in names if (x := getattr(targets, name)) is not None}
    return targets._replace(**kept)


def losses_and_gradients(model, images, raw, instances):
    predictions = Predictions(*([x.clone().requires_grad_() for x in levels] for levels in raw))
    with EventStorage():
        losses = model.forward_training(images, None, predictions, instances)
    leaves = [x for levels in predictions for x in levels]
    return losses, torch.autograd.grad(sum(losses.values()), leaves, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_entries_change_nothing(variant, monkeypatch):
    """Losses and gradients without padding entries, and with all that the bound of the positives allows.

    What is predicted for the boxes of other locations is not even a number. Some padding entries refer to the location
    of a positive.
    """
    model, size = build(variant), (128, 160)
    items = [sample(size, [(0, 0, 30, 30), (40, 30, 150, 120)]), sample(size, [(60, 10, 100, 60)])]
    images, instances = model.preprocess_image(items), [x["instances"] for x in items]
    with torch.no_grad():
        raw = model.predict(images.tensor)
    entries, compute_losses = [], DetectionLoss.__call__

    def spoil(self, predictions, targets, anchors, strides):
        elsewhere = torch.ones_like(targets.valid)
        elsewhere[targets.image[targets.is_positive], targets.location[targets.is_positive]] = False
        boxes = {name: x for name in ("box_pred", "coarse_box_pred") if (x := getattr(predictions, name)) is not None}
        nan = {name: torch.where(elsewhere.unsqueeze(-1), torch.nan, x) for name, x in boxes.items()}
        if not entries:
            targets = keep_positives(targets)
        entries.append((targets.image * elsewhere.shape[1] + targets.location).tolist())
        return compute_losses(self, predictions._replace(**nan), targets, anchors, strides)

    monkeypatch.setattr(DetectionLoss, "__call__", spoil)
    losses, gradients = losses_and_gradients(model, images, raw, instances)
    padded_losses, padded_gradients = losses_and_gradients(model, images, raw, instances)
    positives, padded = entries
    assert len(positives) > 0
    if variant == "max_iou":
        assert padded == positives  # its assigner counts the positives
    else:
        assert len(padded) > len(positives)
    if variant not in ("tood", "simota", "max_iou"):  # their bounds are too tight for that
        assert len(set(padded)) < len(padded)
    for name, value in losses.items():
        torch.testing.assert_close(padded_losses[name], value, rtol=1e-6, atol=0, msg=name)
    for ours, theirs in zip(padded_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
