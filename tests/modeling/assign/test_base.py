"""What holds for every assigner, and what assigners are given."""

import dataclasses

import pytest
import torch
from clq.modeling.assign.atss import ATSSAssigner
from clq.modeling.assign.max_iou import MaxIoUAssigner
from clq.modeling.assign.simota import SimOTAAssigner
from clq.modeling.assign.task_aligned import TaskAlignedAssigner
from clq.modeling.box_coding import DeltaCoder
from clq.modeling.scoring import ScoreRule
from clq.modeling.structures import FlatPredictions
from scenes import grid_centers, make_inputs, random_boxes
from torch import tensor

ASSIGNERS = {
    "atss": ATSSAssigner(),
    "task": TaskAlignedAssigner(),
    "simota": SimOTAAssigner(),
    "max_iou": MaxIoUAssigner((0.2, 0.3)),
}
GRIDS, STRIDES = [(12, 16), (6, 8)], [8, 16]


def make_scene(numbers, valid_sizes=None, seed=0):
    """Inputs with as many ground truths in each image, and random predictions around the locations."""
    torch.manual_seed(seed)
    centers, _ = grid_centers(GRIDS, STRIDES)
    scores = torch.rand(len(numbers), len(centers), 4) * 0.98 + 0.01
    sides = torch.rand(len(numbers), len(centers), 4) * 40 + 4
    boxes = torch.cat((centers - sides[..., :2], centers + sides[..., 2:]), dim=-1)
    gt_boxes = [random_boxes(m, (90, 60)) for m in numbers]
    gt_classes = [torch.randint(4, (m,)) for m in numbers]
    return make_inputs(GRIDS, STRIDES, gt_boxes, gt_classes, scores=scores, boxes=boxes, valid_sizes=valid_sizes)


@pytest.mark.parametrize("assigner", ASSIGNERS.values(), ids=ASSIGNERS)
class TestEveryAssigner:
    def test_an_assignment_has_the_promised_form(self, assigner):
        """Indices are those of the image's own ground truths, and the host knows a bound of the positives."""
        numbers = [5, 0, 30]
        assignment = assigner(make_scene(numbers))
        assert assignment.matched_idxs.dtype == torch.int64
        assert assignment.matched_idxs.shape == (3, 240)
        for matched, number in zip(assignment.matched_idxs, numbers, strict=True):
            assert matched.min() >= -1 and matched.max() < number
        assert type(assignment.max_positives) is int
        assert 0 < (assignment.matched_idxs >= 0).sum() <= assignment.max_positives
        if assignment.alignment_metric is not None:
            assert torch.equal(assignment.alignment_metric > 0, assignment.matched_idxs >= 0)
            assert assignment.alignment_metric.max() <= 1
        if assignment.ignored is not None:
            assert assignment.ignored.any()
            assert not (assignment.ignored & (assignment.matched_idxs >= 0)).any()

    def test_a_batch_is_its_images(self, assigner):
        inputs = make_scene([5, 0, 12])
        together = assigner(inputs)
        for i in range(3):
            alone = assigner(
                make_inputs(
                    GRIDS,
                    STRIDES,
                    inputs.gt_boxes[i : i + 1],
                    inputs.gt_classes[i : i + 1],
                    scores=inputs.log_scores[i : i + 1].exp(),
                    boxes=inputs.boxes[i : i + 1],
                )
            )
            assert torch.equal(alone.matched_idxs[0], together.matched_idxs[i])
            if together.alignment_metric is not None:
                torch.testing.assert_close(alone.alignment_metric[0], together.alignment_metric[i])
            if together.ignored is not None:
                assert torch.equal(alone.ignored[0], together.ignored[i])

    def test_padding_is_never_matched(self, assigner):
        """The image covers the left half of the grids; half of its ground truths lie on the padding alone."""
        inputs = make_scene([24], valid_sizes=[[(12, 8), (6, 4)]])
        assert not inputs.valid.all()
        assignment = assigner(inputs)
        assert (assignment.matched_idxs[inputs.valid] >= 0).any()
        assert (assignment.matched_idxs[~inputs.valid] == -1).all()
        assert assignment.ignored is None or not assignment.ignored[~inputs.valid].any()
        assert (assigner(make_scene([24])).matched_idxs[~inputs.valid] >= 0).any()  # which the whole grids would match

    def test_without_ground_truths_everything_is_background(self, assigner):
        assignment = assigner(make_scene([0, 0]))
        assert (assignment.matched_idxs == -1).all()
        assert assignment.max_positives == 0
        assert assignment.alignment_metric is None or not assignment.alignment_metric.any()
        assert assignment.ignored is None or not assignment.ignored.any()


def test_inputs_decode_and_score_the_predictions_once_and_without_gradient():
    """One location, whose anchor is 8 pixels wide: moved right by half of that, with the scores 1/4 and 1/2."""
    cls_logits = tensor([[[1 / 3, 1.0]]]).log().requires_grad_()
    box_pred = tensor([[[5.0, 0, 0, 0]]], requires_grad=True)
    scene = make_inputs([(1, 1)], [1], [torch.zeros(0, 4)], [tensor([])], scores=tensor([[[0.5]]]), boxes=box_pred)
    predictions = FlatPredictions(cls_logits, box_pred, None)
    inputs = dataclasses.replace(scene, predictions=predictions, coder=DeltaCoder(), score=ScoreRule())
    assert inputs.boxes.tolist() == [[[0, -4, 8, 4]]]
    torch.testing.assert_close(inputs.log_scores.exp(), tensor([[[0.25, 0.5]]]))
    assert not inputs.boxes.requires_grad and not inputs.log_scores.requires_grad
    assert inputs.boxes is inputs.boxes and inputs.log_scores is inputs.log_scores
    assert inputs.centers.tolist() == [[0, 0]]
