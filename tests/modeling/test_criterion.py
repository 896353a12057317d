"""The losses of the batch of hand_made_batch.py, worked out by hand."""

import math

import pytest
import torch
from clq.modeling.box_coding import DeltaCoder
from clq.modeling.criterion import DetectionLoss, weigh_by_alignment_metric, weigh_by_iou
from clq.modeling.losses import quality_focal_loss, varifocal_loss
from clq.modeling.scoring import ScoreRule
from clq.modeling.structures import FlatPredictions
from detectron2.modeling.box_regression import Box2BoxTransform
from hand_made_batch import ANCHORS, LN2, STRIDES, W, atss, clq, gfl, make_predictions, make_targets, no_objects
from torch import tensor


def check(losses, **expected):
    assert {name: x.item() for name, x in losses.items()} == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert {(x.dtype, x.shape) for x in losses.values()} == {(torch.float32, ())}


def bce(p, y):
    return -y * math.log(p) - (1 - y) * math.log(1 - p)


def qfl(p, y):
    return (p - y) ** 2 * bce(p, y)


@pytest.mark.parametrize("num_pos", [2.0, 5.0])
def test_losses_of_atss_by_hand(num_pos):
    predictions = make_predictions()
    with torch.no_grad():
        predictions.quality_logits[0, 1], predictions.quality_logits[1, 2] = math.log(3), -math.log(3)
        predictions.cls_logits[1, 3] = 30.0  # padding: counts nowhere
        predictions.quality_logits[0, 0] = 30.0  # a negative: has no quality to learn
    check(
        atss()(predictions, make_targets(num_pos), ANCHORS, STRIDES),
        # 7 locations x 2 classes at 1/2, two of them positive: alpha_t (1/2)^2 ln 2.
        loss_cls=(2 * 0.25 + 12 * 0.75) * 0.25 * LN2 / num_pos,
        # Weighted by centerness and divided by the sum of the weights, not by the number of positives.
        loss_box=2 * (W[0] * 1 / 2 + W[1] * 1 / 3) / (W[0] + W[1]),
        loss_quality=(bce(0.75, W[0]) + bce(0.25, W[1])) / num_pos,
    )


def first_alone(targets):
    """The targets without their second positive."""
    return targets._replace(**{name: getattr(targets, name)[:1] for name in targets._fields[:4]})


def test_weights_that_sum_to_less_than_the_floor_are_divided_by_the_floor():
    losses = atss()(make_predictions(), first_alone(make_targets(1.0)), ANCHORS, STRIDES)
    assert losses["loss_box"].item() == pytest.approx(2 * W[0] / 2)


@pytest.mark.parametrize("logit", [0.0, -20.0, -87.0, -1e4, -1e30])
def test_without_a_floor_the_box_losses_are_the_weighted_mean_for_any_sum(logit):
    """One positive has its own loss, however small its score; the loss is zero where the score is zero in float32."""
    for loss, channels, box, dfl in (
        (clq(), 4, 2 * 1 / 2, None),
        (gfl(0.0), 32, 2 * (1 - 128 / 56**2), math.log(8) / 4),
    ):
        predictions = make_predictions(channels, quality=loss.quality_target is not None)
        predictions.cls_logits.data.fill_(logit)
        losses = loss(predictions, first_alone(make_targets(1.0)), ANCHORS, STRIDES)
        seen = logit > -1e4
        assert losses["loss_box"].item() == pytest.approx(box if seen else 0.0)
        assert dfl is None or losses["loss_dfl"].item() == pytest.approx(dfl if seen else 0.0)
        (grad,) = torch.autograd.grad(losses["loss_box"], predictions.box_pred)
        assert grad.isfinite().all()
        assert bool(grad.any()) == seen


def test_the_sum_of_the_weights_is_that_of_all_levels_and_images():
    """Scores 3/4 and 1/4 of GFL: losses are weighted by them and divided by 1, not by each image's own."""
    predictions = make_predictions(32, quality=False)
    with torch.no_grad():
        predictions.cls_logits[0, 1, 0], predictions.cls_logits[1, 2, 0] = math.log(0.15 / 0.85), math.log(0.05 / 0.95)
        predictions.cls_logits[0, 1, 1] = predictions.cls_logits[1, 2, 1] = -9.0
    giou_loss = [1 - 128 / 56**2, 1 - 96 / 56**2]
    for floor, norm in ((0.0, 0.2), (1.0, 1.0)):
        losses = gfl(floor)(predictions, make_targets(), ANCHORS, STRIDES)
        expected = 2 * (0.15 * giou_loss[0] + 0.05 * giou_loss[1]) / norm
        assert losses["loss_box"].item() == pytest.approx(expected, rel=1e-5)
        assert losses["loss_dfl"].item() == pytest.approx(0.25 * math.log(8) * 0.2 / norm, rel=1e-5)


@pytest.mark.parametrize("num_pos", [2.0, 5.0])
def test_losses_of_clq_by_hand(num_pos):
    predictions = make_predictions()
    with torch.no_grad():
        predictions.quality_logits[0] = math.log(3)
        predictions.cls_logits[1, 3] = predictions.quality_logits[1, 3] = 30.0  # padding
    p, p_other = 0.5 * 0.75**0.3, 0.5 * 0.5**0.3  # the joint score in image 0 and 1
    cls = qfl(p, 0.5) + 7 * qfl(p, 0) + qfl(p_other, 2 / 3) + 5 * qfl(p_other, 0)  # the IoU itself is the target
    check(
        clq()(predictions, make_targets(num_pos), ANCHORS, STRIDES),
        loss_cls=cls / num_pos,
        # Weighted by the joint score and divided by the sum of the weights, not by the number of positives.
        loss_box=2 * (p * 1 / 2 + p_other * 1 / 3) / (p + p_other),
        loss_quality=(bce(0.75, 1 / 2) + bce(0.5, 2 / 3)) / num_pos,
    )


def test_loss_weights_scale_their_own_loss():
    plain = clq()(make_predictions(), make_targets(), ANCHORS, STRIDES)
    scaled = clq(box_loss_weight=6.0, quality_loss_weight=0.5)(make_predictions(), make_targets(), ANCHORS, STRIDES)
    factors = {"loss_cls": 1, "loss_box": 3, "loss_quality": 0.5}
    check(scaled, **{name: plain[name].item() * factor for name, factor in factors.items()})


def test_the_class_target_sits_at_the_class_of_its_own_positive():
    """A step against the gradient raises exactly two of the sixteen class logits."""
    for loss in (atss(), clq(), gfl()):
        predictions = make_predictions(loss.coder.num_channels)
        predictions.cls_logits.data.fill_(-6.0)
        (grad,) = torch.autograd.grad(loss(predictions, make_targets(), ANCHORS, STRIDES)["loss_cls"], predictions[:1])
        assert (grad < 0).nonzero().tolist() == [[0, 1, 1], [1, 2, 0]]
        assert (grad == 0).nonzero()[:, :2].tolist() == [[1, 3], [1, 3]]


def test_gfl_weighs_by_the_largest_class_score_without_gradient():
    """Scores 3/4 and 1/4. All bins are equal, so each side lies 3.5 strides from the anchor's centre."""
    predictions = make_predictions(32, quality=False)
    with torch.no_grad():
        predictions.cls_logits[0, 1, 0], predictions.cls_logits[0, 1, 1] = math.log(3), -5.0
        predictions.cls_logits[1, 2] = tensor([-math.log(3), -7.0])
    losses = gfl()(predictions, make_targets(), ANCHORS, STRIDES)
    union = [56 * 56, 56 * 56]  # both ground truths lie inside the predicted square of 7 strides
    giou_loss = [1 - 128 / union[0], 1 - 96 / union[1]]
    assert losses.keys() == {"loss_cls", "loss_box", "loss_dfl"}
    # The weights sum to 1.
    assert losses["loss_box"].item() == pytest.approx(2 * (0.75 * giou_loss[0] + 0.25 * giou_loss[1]))
    assert losses["loss_dfl"].item() == pytest.approx(0.25 * math.log(8))
    for name in ("loss_box", "loss_dfl"):
        assert torch.autograd.grad(losses[name], predictions[:1], allow_unused=True, retain_graph=True) == (None,)


def test_vfnet_weighs_coarse_and_refined_boxes_each_by_their_own_iou():
    """The refined boxes are the anchors, of IoU 1/2 and 2/3, and the coarse boxes are the ground truths themselves."""
    vfnet = DetectionLoss(
        ScoreRule(), DeltaCoder(), varifocal_loss, soft_target=True, box_weight=weigh_by_iou, box_loss_weight=2.0
    )
    predictions, targets = make_predictions(quality=False), make_targets()
    coarse = predictions.box_pred.clone()
    encoder = Box2BoxTransform(DeltaCoder().weights)
    coarse[targets.image, targets.location] = encoder.get_deltas(ANCHORS[targets.location], targets.gt_boxes)
    losses = vfnet(predictions._replace(coarse_box_pred=coarse), targets, ANCHORS, STRIDES)
    box = (1 / 2 * 1 / 2 + 2 / 3 * 1 / 3) / (1 / 2 + 2 / 3)
    negatives = 5 * 0.75 / 4 * LN2  # seven valid locations: five without an object, two classes each
    positives = (1 / 2 + 2 / 3) * LN2 + 2 * 0.75 / 4 * LN2  # cross entropy at p = 1/2; and their other class
    check(losses, loss_cls=(2 * negatives + positives) / 2, loss_box=2 * box, loss_box_coarse=0.0)
    worse = vfnet(predictions._replace(coarse_box_pred=predictions.box_pred), targets, ANCHORS, STRIDES)
    assert worse["loss_box_coarse"].item() == pytest.approx(1.5 * box, rel=1e-5)
    # The other way round: the refined boxes are perfect and of equal weight, the coarse ones keep their own weights.
    refined = vfnet(
        FlatPredictions(predictions.cls_logits, coarse, None, predictions.box_pred), targets, ANCHORS, STRIDES
    )
    assert refined["loss_box"].item() == pytest.approx(0.0, abs=1e-6)
    assert refined["loss_box_coarse"].item() == pytest.approx(1.5 * box, rel=1e-5)


def tood():
    weights = {"box_weight": weigh_by_alignment_metric, "box_loss_weight": 2.0}
    return DetectionLoss(ScoreRule(0.5, True, 0.5), DeltaCoder(), quality_focal_loss, soft_target=True, **weights)


@pytest.mark.parametrize("total", [1.2, 0.6, 1e-6])
def test_tood_learns_the_alignment_metric_and_divides_by_its_sum(total):
    """The score is 1/2 everywhere, and the alignment metrics are a third and two thirds of the total."""
    norm = total
    first, second = total / 3, total * 2 / 3
    predictions, targets = make_predictions(), make_targets(total, alignment_metric=tensor([first, second]))
    check(
        tood()(predictions, targets, ANCHORS, STRIDES),
        loss_cls=(qfl(0.5, first) + qfl(0.5, second) + 12 * qfl(0.5, 0)) / norm,
        loss_box=2 * (1 / 3 * 1 / 2 + 2 / 3 * 1 / 3),
    )
    predictions.quality_logits.data[:] = math.log(15)  # 15/16, so that the score is sqrt(15/32)
    p = (15 / 32) ** 0.5
    losses = tood()(predictions, targets, ANCHORS, STRIDES)
    assert losses["loss_cls"].item() == pytest.approx(
        (qfl(p, first) + qfl(p, second) + 12 * qfl(p, 0)) / norm, rel=1e-5
    )


def test_the_quality_learns_from_the_refined_box():
    predictions, targets = make_predictions(), make_targets()
    coarse = torch.randn_like(predictions.box_pred)
    refined = clq()(predictions._replace(coarse_box_pred=coarse), targets, ANCHORS, STRIDES)
    plain = clq()(predictions, targets, ANCHORS, STRIDES)
    assert refined.pop("loss_box_coarse") > 0
    check(refined, **{name: x.item() for name, x in plain.items()})
    # A logit other than 0, at which the loss would depend on no target.
    sure = predictions._replace(quality_logits=predictions.quality_logits + 2)
    with_coarse = clq()(sure._replace(coarse_box_pred=coarse), targets, ANCHORS, STRIDES)
    assert with_coarse["loss_quality"].item() == clq()(sure, targets, ANCHORS, STRIDES)["loss_quality"].item()


def test_targets_carry_no_gradient_into_the_boxes():
    predictions = make_predictions()
    losses = clq()(predictions, make_targets(), ANCHORS, STRIDES)
    for name, reaches in (("loss_cls", False), ("loss_quality", False), ("loss_box", True)):
        (grad,) = torch.autograd.grad(losses[name], predictions.box_pred, allow_unused=True, retain_graph=True)
        assert (grad is not None and bool(grad.any())) == reaches
    # The class loss trains the quality through the joint score; in ATSS it does not.
    for loss, reaches in ((clq(), True), (atss(), False)):
        predictions = make_predictions()
        cls = loss(predictions, make_targets(), ANCHORS, STRIDES)["loss_cls"]
        (grad,) = torch.autograd.grad(cls, predictions.quality_logits, allow_unused=True)
        assert (grad is not None) == reaches


@pytest.mark.parametrize("make", [atss, clq, gfl])
def test_a_batch_without_objects_has_the_same_keys_and_every_gradient(make):
    loss = make()
    predictions = make_predictions(loss.coder.num_channels, quality=loss.quality_target is not None)
    losses = loss(predictions, no_objects(), ANCHORS, STRIDES)
    assert losses.keys() == loss(predictions, make_targets(), ANCHORS, STRIDES).keys()
    assert {name for name, x in losses.items() if x.item() != 0} == {"loss_cls"}
    sum(losses.values()).backward()
    assert predictions.cls_logits.grad.any()
    assert not predictions.box_pred.grad.any()
    assert loss.quality_target is None or predictions.quality_logits.grad is not None


def test_half_precision_predictions_give_the_losses_of_their_float32_values():
    torch.manual_seed(0)
    for loss in (atss(), clq(), gfl()):
        predictions = make_predictions(loss.coder.num_channels)
        half = FlatPredictions(*((torch.randn_like(x) * 3).bfloat16() for x in predictions[:3]))
        expected = loss(FlatPredictions(*(x.float() for x in half[:3])), make_targets(), ANCHORS, STRIDES)
        with torch.autocast("cpu", torch.bfloat16):
            losses = loss(half._replace(box_pred=half.box_pred.float()), make_targets(), ANCHORS, STRIDES)
        check(losses, **{name: x.item() for name, x in expected.items()})
