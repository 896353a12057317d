"""The selection of detections, against plain loops over locations, classes and pairs of boxes."""

import math

import pytest
import torch
from clq.modeling.box_coding import DeltaCoder, DistributionCoder
from clq.modeling.postprocess import DetectionSelector, moved_to_image
from clq.modeling.scoring import ScoreRule
from clq.modeling.structures import Predictions
from detectron2.structures import Boxes, Instances
from torch import tensor

ATSS, CLQ, NONE = ScoreRule(1.0, joint=False), ScoreRule(0.3, joint=True), ScoreRule()
TOOD = ScoreRule(0.5, joint=True, cls_alpha=0.5)
SIZE, STRIDES = (90, 120), [8, 16]  # (H, W) of the image and strides of the levels


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return inter and inter / (sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - inter)


def slow(predictions, boxes, *, rule, thresh, topk, nms, max_detections, locations=False):
    """The detections as a list of (final score, box, class, class score, quality, level, location), best first."""
    found = []
    for level, logits in enumerate(predictions.cls_logits):
        here = []
        for r in range(len(logits)):
            quality = sigmoid(predictions.quality_logits[level][r].item()) if predictions.quality_logits else 1.0
            for k, logit in enumerate(logits[r].tolist()):
                final = sigmoid(logit) ** rule.cls_alpha * quality**rule.alpha
                trained = final if rule.joint else sigmoid(logit)
                if trained > thresh:
                    here.append((trained, final, boxes[level][r], k, sigmoid(logit), quality, level, r))
        here.sort(key=lambda x: -x[0])
        if locations:  # all pairs of the topk locations with the best scores
            chosen = list(dict.fromkeys(x[-1] for x in here))[:topk]
            found += [x for x in here if x[-1] in chosen]
        else:
            found += here[:topk]
    clipped = []
    for _, final, (x1, y1, x2, y2), k, *rest in found:
        x1, x2 = (min(max(x, 0), SIZE[1]) for x in (x1, x2))
        y1, y2 = (min(max(y, 0), SIZE[0]) for y in (y1, y2))
        if (x2 > x1 and y2 > y1) or locations:
            clipped.append((final, (x1, y1, x2, y2), k, *rest))
    kept = []
    for d in sorted(clipped, key=lambda x: -x[0]):
        if all(d[2] != other[2] or iou(d[1], other[1]) <= nms for other in kept):
            kept.append(d)
    return kept[:max_detections]


def make_anchors(grids):
    """For each level its anchors (H W, 4), squares of 4 strides around (x, y) * stride."""
    anchors = []
    for (h, w), stride in zip(grids, STRIDES, strict=False):
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        center = torch.stack((x, y), -1).view(-1, 2).float() * stride
        anchors.append(torch.cat((center - 2 * stride, center + 2 * stride), 1))
    return anchors


def random_predictions(coder, quality, spread=2.0):
    grids = [(9, 10), (6, 5)]
    sizes = [h * w for h, w in grids]
    return make_anchors(grids), Predictions(
        [torch.randn(r, 3) * 2 - 2 for r in sizes],
        [torch.randn(r, coder.num_channels) * spread for r in sizes],
        [torch.randn(r, 1) * 2 for r in sizes] if quality else [],
        [],
    )


@pytest.mark.parametrize("coder", [DeltaCoder(), DistributionCoder(7)], ids=["delta", "distribution"])
@pytest.mark.parametrize("rule", [ATSS, CLQ, TOOD, NONE], ids=["atss", "clq", "tood", "none"])
@pytest.mark.parametrize(
    ("thresh", "topk", "nms", "max_detections"),
    [(0.05, 1000, 0.6, 100), (0.05, 20, 0.6, 100), (0.2, 1000, 0.3, 7), (0.0, 1000, 0.5, 1000), (0.8, 1000, 0.6, 100)],
)
@pytest.mark.parametrize("locations", [False, True], ids=["pairs", "locations"])
def test_equals_the_slow_form(coder, rule, thresh, topk, nms, max_detections, locations):
    torch.manual_seed(0)
    anchors, predictions = random_predictions(coder, quality=rule is not NONE)

    decoded = [coder.decode(*x).tolist() for x in zip(predictions.box_pred, anchors, tensor(STRIDES), strict=True)]
    limits = {"topk": topk, "max_detections": max_detections, "locations": locations}
    expected = slow(predictions, decoded, rule=rule, thresh=thresh, nms=nms, **limits)
    selector = DetectionSelector(rule, coder, thresh, topk, nms, max_detections, locations)
    found = selector.select(selector.candidates(predictions, anchors, STRIDES, SIZE))
    assert len(found) == len(expected) > 0
    assert found.image_size == SIZE
    scores, boxes, classes, cls_scores, quality, levels, places = (tensor(x) for x in zip(*expected, strict=True))
    assert found.pred_classes.tolist() == classes.tolist()
    torch.testing.assert_close(found.scores, scores)
    torch.testing.assert_close(found.pred_boxes.tensor, boxes, atol=1e-3, rtol=0)
    assert found.levels.tolist() == levels.tolist() and found.locations.tolist() == places.tolist()
    fields = {"pred_boxes", "scores", "pred_classes", "levels", "locations"}
    if rule is NONE:
        assert set(found.get_fields()) == fields
    else:
        assert set(found.get_fields()) == {*fields, "cls_scores", "pred_quality"}
        torch.testing.assert_close(found.cls_scores, cls_scores)
        torch.testing.assert_close(found.pred_quality, quality)


def one_level(logits, quality=None, anchors=None):
    """Predictions of one level whose deltas are zero, and its anchors, which do not overlap unless they are given."""
    logits = torch.as_tensor(logits).view(len(logits), -1)
    corner = torch.arange(len(logits)).float()[:, None] * tensor([10.0, 0.0])
    anchors = torch.cat((corner, corner + 8), 1) if anchors is None else tensor(anchors)
    quality = [] if quality is None else [tensor(quality).view(-1, 1)]
    return Predictions([logits], [torch.zeros(len(logits), 4)], quality, []), [anchors]


def select(rule, predictions, anchors, size=(50, 10_000), **settings):
    selector = DetectionSelector(rule, DeltaCoder(), **settings)
    return selector.select(selector.candidates(predictions, anchors, [8], size))


def test_atss_filters_and_ranks_candidates_by_the_class_and_detections_by_the_product():
    """Class scores 0.9, 0.8, 0.04 and centerness 0.01, 0.5, 1: the first stays with a product of 0.009."""
    logit = [math.log(9), math.log(4), math.log(0.04 / 0.96)]
    quality = [math.log(0.01 / 0.99), 0.0, 30.0]
    found = select(ATSS, *one_level(logit, quality))
    assert found.scores.tolist() == pytest.approx([0.4, 0.009])
    assert found.cls_scores.tolist() == pytest.approx([0.8, 0.9])
    assert found.pred_quality.tolist() == pytest.approx([0.5, 0.01])
    # With one candidate per level the higher class score stays, although its product is lower.
    assert select(ATSS, *one_level(logit, quality), topk_candidates=1).scores.tolist() == pytest.approx([0.009])


def test_clq_filters_by_the_joint_score():
    """Class scores 0.9 and 0.8, IoUs 1e-5 and 0.5: 0.9 * 1e-5^0.3 = 0.028 is too low, and 0.8 * 0.5^0.3 is not."""
    logit, quality = [math.log(9), math.log(4)], [math.log(1e-5), 0.0]
    for topk in (1000, 1):
        found = select(CLQ, *one_level(logit, quality), topk_candidates=topk)
        assert found.scores.tolist() == pytest.approx([0.8 * 0.5**0.3])


def test_tood_filters_by_the_geometric_mean():
    """Class 0.04 and 0.002, map 1: their square roots, 0.2 and 0.0447, lie above and below the threshold 0.05.

    A comparison of the class score itself with 0.05 would drop both.
    """
    logit = [math.log(0.04 / 0.96), math.log(0.002 / 0.998)]
    found = select(TOOD, *one_level(logit, [200.0, 200.0]))
    assert found.scores.tolist() == pytest.approx([0.2])
    assert found.cls_scores.tolist() == pytest.approx([0.04])


def test_boxes_are_clipped_and_dropped_where_they_lie_outside_the_image():
    anchors = [[-5.0, -5, 20, 30], [50, 40, 99, 99], [-9, -9, -1, -1], [90, 10, 99, 20]]
    found = select(NONE, *one_level([4.0, 3.0, 2.0, 1.0], anchors=anchors), size=(45, 90))
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 20, 30], [50, 40, 90, 45]]


def test_boxes_without_area_stay_where_the_top_k_counts_locations():
    """The second box lies outside the image and has no area after clipping; Detectron2 drops it in postprocessing."""
    anchors = [[-5.0, -5, 20, 30], [-9, -9, -1, -1]]
    found = select(NONE, *one_level([4.0, 3.0], anchors=anchors), size=(45, 90), count_locations=True)
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 20, 30], [0, 0, 0, 0]]


def test_the_top_k_counts_pairs_or_locations():
    """By score, the pairs are location 0 with class 0 and with class 1, then location 1 with class 0; k is 1."""
    logits = [[3.0, 2.0], [1.0, -9.0]]
    far = [[0.0, 0, 8, 8], [20, 0, 28, 8]]
    for counts, classes in ((False, [0]), (True, [0, 1])):
        found = select(NONE, *one_level(logits, anchors=far), topk_candidates=1, count_locations=counts)
        assert found.pred_classes.tolist() == classes


def test_nms_is_class_wise():
    """Boxes 10 wide: shifted by 2.5 the IoU is 75/125, below 0.601; shifted by 2 it is 80/120, above 0.6."""
    anchors = [[0.0, 0, 10, 10], [2.5, 0, 12.5, 10], [2, 0, 12, 10]]
    logits = torch.full((3, 2), -20.0)
    logits[:, 0] = tensor([3.0, 2.0, 1.0])
    found = select(NONE, *one_level(logits[[0, 2]], anchors=[anchors[0], anchors[2]]), nms_thresh=0.6)
    assert found.pred_boxes.tensor.tolist() == [anchors[0]]
    found = select(NONE, *one_level(logits[[0, 1]], anchors=anchors[:2]), nms_thresh=0.601)
    assert len(found) == 2
    logits[2] = tensor([-20.0, 1.0])
    found = select(NONE, *one_level(logits[[0, 2]], anchors=[anchors[0], anchors[2]]), nms_thresh=0.6)
    assert found.pred_classes.tolist() == [0, 1]


def test_the_best_detections_stay_where_there_are_too_many():
    found = select(NONE, *one_level(torch.arange(30.0) / 10), max_detections=4)
    assert found.scores.tolist() == pytest.approx([sigmoid(x / 10) for x in (29, 28, 27, 26)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", [CLQ, ATSS, TOOD, NONE], ids=["clq", "atss", "tood", "none"])
def test_the_threshold_is_exact_in_every_type(rule, dtype):
    """All values of a type near the logit at which the score, with quality 1, equals the threshold."""
    for thresh in (1e-3, 0.02, 0.05, 0.06, 0.1, 0.3, 0.5, 0.77, 0.999):
        at_cls = thresh ** (1 / rule.cls_alpha)  # the class score there
        logits = torch.linspace(-0.1, 0.1, 400).add(math.log(at_cls / (1 - at_cls))).to(dtype).unique()
        quality = None if rule is NONE else [200.0] * len(logits)
        settings = {"score_thresh": thresh, "max_detections": 1000}
        found = select(rule, *one_level(logits, quality), **settings)
        expected = logits.float().sigmoid() ** rule.cls_alpha
        expected = expected[expected > thresh]
        assert found.scores.dtype == torch.float32
        torch.testing.assert_close(found.scores, expected.sort(descending=True).values)


def test_there_may_be_nothing_above_the_threshold():
    for rule, quality in ((NONE, None), (CLQ, [0.0, 0.0])):
        found = select(rule, *one_level([-9.0, -8.0], quality))
        assert len(found) == 0
        assert found.pred_boxes.tensor.shape == (0, 4)
        assert found.has("cls_scores") == (quality is not None)
    assert len(select(NONE, *one_level([-80.0, -60.0]), score_thresh=0.0)) == 2
    assert len(select(NONE, *one_level([6.0, 9.3]), score_thresh=0.9999)) == 1  # 0.9975, 0.99991


def in_input(boxes, size):
    found = Instances(size)
    found.pred_boxes = Boxes(tensor(boxes, dtype=torch.float32))
    found.scores = torch.arange(len(boxes)) / 10
    return found


HALVED = [[0.5, 0, 0], [0, 0.5, 10], [0, 0, 1]]  # from 160 x 120 to 80 x 80 pixels, with 10 black rows above and below


@pytest.mark.parametrize(
    "matrix, boxes, expected, kept",
    [
        (HALVED, [[30, 25, 55, 35]], [[60, 30, 110, 50]], [0]),
        # The first two are clipped to the image; the third lies in the black rows and is dropped.
        (HALVED, [[-1, 5, 90, 75], [10, 60, 20, 80], [10, 0, 20, 9]], [[0, 0, 160, 120], [20, 100, 40, 120]], [0, 1]),
        ([[-1.0, 0, 100], [0, 1, -5], [0, 0, 1]], [[0, 25, 40, 45]], [[60, 30, 100, 50]], [0]),  # mirrored
        # Transposed and twice as large: (x, y) to (2 y, 2 x + 10).
        ([[0.0, 2, 0], [2, 0, 10], [0, 0, 1]], [[20, 30, 40, 70]], [[10, 10, 30, 20]], [0]),
    ],
)
def test_boxes_are_mapped_to_the_image_by_the_inverse_matrix(matrix, boxes, expected, kept):
    batched_input = {"input_from_image": tensor(matrix, dtype=torch.float64), "height": 120, "width": 160}
    moved = moved_to_image(in_input(boxes, (80, 80)), batched_input)
    assert moved.image_size == (120, 160)
    assert moved.pred_boxes.tensor.dtype == torch.float32
    assert torch.allclose(moved.pred_boxes.tensor, tensor(expected, dtype=torch.float32), atol=1e-5)
    assert moved.scores.tolist() == pytest.approx([i / 10 for i in kept])


def test_without_a_matrix_boxes_are_scaled_to_the_size_of_the_image():
    boxes = [[10.0, 20, 30, 90], [0, 0, 0, 5]]
    moved = moved_to_image(in_input(boxes, (80, 100)), {"height": 160, "width": 50})
    assert moved.image_size == (160, 50) and moved.pred_boxes.tensor.tolist() == [[5, 40, 15, 160]]
    stay = moved_to_image(in_input(boxes, (80, 100)), {})
    assert stay.image_size == (80, 100) and stay.pred_boxes.tensor.tolist() == [[10, 20, 30, 80]]


def test_equal_scores_stay_in_the_order_of_the_candidates():
    """Above 1,000 boxes torchvision's NMS takes another path, which leaves equal scores in any order."""
    for number in (900, 1100):
        predictions, anchors = one_level(torch.zeros(number))
        found = select(NONE, predictions, anchors, size=(50, 20_000), topk_candidates=2000, max_detections=50)
        assert found.pred_boxes.tensor[:, 0].tolist() == [10.0 * i for i in range(50)]
