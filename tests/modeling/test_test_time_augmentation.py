"""Test-time augmentation, with a detector that finds bright rectangles and with the project's variants."""

import math

import clq
import pytest
import torch
from clq.engine.config_checks import check_model
from clq.errors import UserError
from clq.modeling.box_coding import DeltaCoder
from clq.modeling.postprocess import DetectionSelector
from clq.modeling.scoring import ScoreRule
from clq.modeling.test_time_augmentation import DenseTTA
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Boxes, Instances, pairwise_iou
from tiny_detectors import build
from torch import nn


class BrightPixels(nn.Module):
    """Finds the box around the bright pixels of each channel, its class; the i-th image has the score ``scores[i]``."""

    def __init__(self, scores, max_detections=100):
        super().__init__()
        self.scores, self.sizes = iter(scores), []
        self.selector = DetectionSelector(ScoreRule(), DeltaCoder(), max_detections=max_detections)

    def candidates(self, batched_inputs):
        (image,) = (x["image"] for x in batched_inputs)
        self.sizes.append(tuple(image.shape[1:]))
        score, boxes, classes = next(self.scores), [], []
        for channel, bright in enumerate(image > 127):
            y, x = bright.nonzero(as_tuple=True)
            if len(x):
                boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
                classes.append(channel)
        found = Instances(tuple(image.shape[1:]))
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
        found.scores = torch.full((len(boxes),), score)
        found.pred_classes = torch.tensor(classes, dtype=torch.int64)
        found.cls_scores, found.pred_quality = found.scores.sqrt(), found.scores.sqrt()
        return [found]


def picture(height, width, *boxes):
    """(3, height, width) uint8, black but for a rectangle in each channel that has a box."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(boxes):
        image[channel, y1:y2, x1:x2] = 255
    return image


def test_boxes_come_back_from_sizes_and_flips():
    """An image of 40 x 100 at short sides 40 and 80, also flipped, at most 170 long: the larger version is 68 x 170."""
    model = BrightPixels([0.5, 0.6, 0.9, 0.7])
    tta = DenseTTA(model, DatasetMapperTTA([40, 80], 170, True))
    (found,) = tta([{"image": picture(40, 100, (10, 5, 30, 25), (70, 20, 100, 40))}])
    assert model.sizes == [(40, 100), (40, 100), (68, 170), (68, 170)]
    found = found["instances"]
    assert found.image_size == (40, 100)
    # All four versions agree within a pixel of the larger, so NMS leaves the best score, with its class score.
    assert found.pred_classes.sort().values.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.9])
    assert found.cls_scores.tolist() == found.pred_quality.tolist() == pytest.approx([math.sqrt(0.9)] * 2)
    boxes = found.pred_boxes.tensor[found.pred_classes.argsort()]
    torch.testing.assert_close(boxes, torch.tensor([[10.0, 5, 30, 25], [70, 20, 100, 40]]), atol=0.6, rtol=0)


@pytest.mark.parametrize("scores", [[0.6, 0.9], [0.9, 0.6]], ids=["flipped wins", "plain wins"])
def test_a_flip_comes_back_exactly(scores):
    tta = DenseTTA(BrightPixels(scores), DatasetMapperTTA([0], 4000, True))
    (found,) = tta([{"image": picture(37, 101, (10, 5, 31, 25))}])
    assert found["instances"].pred_boxes.tensor.tolist() == [[10, 5, 31, 25]]
    assert found["instances"].scores.tolist() == pytest.approx([0.9])


def test_boxes_belong_to_the_original_image_where_the_loader_resized_it():
    """The loader gives 20 x 50 pixels of an original image of 40 x 100."""
    tta = DenseTTA(BrightPixels([0.9, 0.5]), DatasetMapperTTA([20], 4000, True))
    (found,) = tta([{"image": picture(20, 50, (5, 2, 15, 12)), "height": 40, "width": 100}])
    assert found["instances"].image_size == (40, 100)
    assert found["instances"].pred_boxes.tensor.tolist() == [[10, 4, 30, 24]]


def test_several_images_and_none_found():
    tta = DenseTTA(BrightPixels([0.9] * 6), DatasetMapperTTA([16, 32, 48], 4000, False))
    first, second = tta([{"image": picture(30, 20)}, {"image": picture(25, 45, (10, 5, 30, 20))}])
    assert len(first["instances"]) == 0
    assert first["instances"].pred_boxes.tensor.shape == (0, 4)
    assert len(second["instances"]) == 1


class Fixed(nn.Module):
    """Finds the given boxes and scores in the i-th image, which it does not look at."""

    def __init__(self, found, **settings):
        super().__init__()
        self.found, self.selector = iter(found), DetectionSelector(ScoreRule(), DeltaCoder(), **settings)

    def candidates(self, batched_inputs):
        boxes, scores = next(self.found)
        found = Instances(tuple(batched_inputs[0]["image"].shape[1:]))
        found.pred_boxes, found.scores = Boxes(torch.tensor(boxes)), torch.tensor(scores)
        found.pred_classes = torch.zeros(len(scores), dtype=torch.int64)
        return [found]


def test_candidates_are_merged_before_nms():
    """Three boxes 10 wide in a row, each moved by 2: neighbours overlap by 80/120, the outer two by 60/140 only.

    The left one (0.9) is of the second size. NMS of the first alone would let the middle (0.8) suppress the right
    (0.7); over both, the left suppresses the middle and so the right stays.
    """
    row = [[2.0, 0, 12, 10], [4.0, 0, 14, 10]], [0.8, 0.7]
    tta = DenseTTA(Fixed([row, ([[0.0, 0, 10, 10]], [0.9])], nms_thresh=0.6), DatasetMapperTTA([0, 0], 99, False))
    (found,) = tta([{"image": picture(20, 20)}])
    assert found["instances"].scores.tolist() == pytest.approx([0.9, 0.7])


def test_the_limit_of_detections_counts_once():
    """At most two detections of the scores 0.5, 0.4, 0.3 and 0.2, 0.9, of which the last two repeat boxes."""
    first = [[0.0, 0, 5, 5], [10, 0, 15, 5], [0, 10, 5, 15]], [0.5, 0.4, 0.3]
    second = [[10.0, 0, 15, 5], [0, 10, 5, 15]], [0.2, 0.9]
    for order in ([first, second], [second, first]):
        tta = DenseTTA(Fixed(order, max_detections=2), DatasetMapperTTA([0, 0], 99, False))
        (found,) = tta([{"image": picture(20, 20)}])
        assert found["instances"].scores.tolist() == pytest.approx([0.9, 0.5])


def test_boxes_are_clipped_to_the_original_image():
    """At twice the size of 10 x 20, boxes that extend beyond the image are clipped and those outside are dropped."""
    boxes = [[-8.0, 4, 16, 90], [50, 2, 60, 10], [30, 4, 50, 12]], [0.9, 0.8, 0.7]
    tta = DenseTTA(Fixed([boxes]), DatasetMapperTTA([20], 99, False))
    (found,) = tta([{"image": picture(10, 20)}])
    assert found["instances"].pred_boxes.tensor.tolist() == [[0, 2, 8, 10], [15, 2, 20, 6]]


def noise(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def detector(variant):
    """A variant with random weights and low thresholds: it has many detections, no two with the same score."""
    model = build(variant, "MODEL.CLQ.SCORE_THRESH", 0.001, "TEST.DETECTIONS_PER_IMAGE", 300).eval()
    torch.manual_seed(1)
    for p in model.head.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


@pytest.mark.parametrize("size", [(75, 130), (64, 33)])
@pytest.mark.parametrize("variant", ["atss", "clq", "gflv2", "vfnet", "tood"])
def test_one_version_as_it_is_equals_plain_inference(variant, size):
    """All fields are equal to the last bit."""
    model, batch = detector(variant), [{"image": noise(*size)}]
    with torch.no_grad():
        (plain,), (tta,) = model(batch), DenseTTA(model, DatasetMapperTTA([0], 4000, False))(batch)
    plain, tta = plain["instances"], tta["instances"]
    assert len(plain) == len(tta) > 4
    assert plain.image_size == tta.image_size == size
    assert plain.get_fields().keys() == tta.get_fields().keys()
    assert plain.has("cls_scores") == plain.has("pred_quality") == (variant != "vfnet")
    assert torch.equal(plain.pred_boxes.tensor, tta.pred_boxes.tensor)
    for name in plain.get_fields().keys() - {"pred_boxes"}:
        assert torch.equal(plain.get(name), tta.get(name)), name


@pytest.mark.parametrize("variant", ["atss", "clq"])
def test_two_equal_sizes_find_everything_once(variant):
    model, batch = detector(variant), [{"image": noise(96, 128)}]
    with torch.no_grad():
        (once,), (twice,) = (DenseTTA(model, DatasetMapperTTA([64] * n, 4000, False))(batch) for n in (1, 2))
    torch.testing.assert_close(once["instances"].scores, twice["instances"].scores)
    torch.testing.assert_close(once["instances"].pred_boxes.tensor, twice["instances"].pred_boxes.tensor)


@pytest.mark.parametrize("variant", ["atss", "clq"])
def test_a_flipped_image_has_the_flipped_detections(variant):
    """Plain inference would differ, because its grid starts at the left."""
    model, image = detector(variant), noise(75, 130)
    tta = DenseTTA(model, DatasetMapperTTA([0], 4000, True))
    with torch.no_grad():
        (found,), (other,) = (tta([{"image": x}]) for x in (image, image.flip(2)))
    found, other = found["instances"], other["instances"]
    x1, y1, x2, y2 = other.pred_boxes.tensor.unbind(1)
    back = Boxes(torch.stack((130 - x2, y1, 130 - x1, y2), 1))
    torch.testing.assert_close(found.scores, other.scores)
    same = found.pred_classes[:, None] == other.pred_classes  # and in any order where scores are equal to rounding
    same &= (found.scores[:, None] - other.scores).abs() < 1e-5
    assert (pairwise_iou(found.pred_boxes, back) * same).amax(dim=1).min() > 0.999


def test_the_training_mode_is_that_of_the_model():
    model = build("clq")
    for training in (True, False):
        assert DenseTTA(model.train(training), None).training is model.training is training


def test_an_image_too_thin_is_named():
    tta = DenseTTA(BrightPixels([]), DatasetMapperTTA([16], 20, False))
    with pytest.raises(UserError, match=r"image of 9000 x 1 pixels: too thin for TEST\.AUG\.MIN_SIZES"):
        tta([{"image": picture(1, 9000)}])
    with pytest.raises(UserError, match=r"image a\.png: too thin"):
        tta([{"image": picture(1, 9000), "file_name": "a.png"}])


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MIN_SIZES", "()"], r"TEST\.AUG\.MIN_SIZES \[\]: must be one or more short sides"),
        (["MIN_SIZES", "(400, -1)"], r"TEST\.AUG\.MIN_SIZES \[400, -1\]: must be"),
        (["MIN_SIZES", "(400, 1.5)"], r"TEST\.AUG\.MIN_SIZES \[400, 1\.5\]: must be"),
        (["MAX_SIZE", 0], r"TEST\.AUG\.MAX_SIZE 0: must be at least 1"),
    ],
)
def test_wrong_settings_are_named(opts, message, tiny):
    opts = [f"TEST.AUG.{opts[0]}", opts[1]]
    check_model(clq.setup_cfg(tiny, opts))  # not enabled
    with pytest.raises(UserError, match=message):
        check_model(clq.setup_cfg(tiny, [*opts, "TEST.AUG.ENABLED", True]))


def test_other_models_have_no_test_time_augmentation():
    opts = ["MODEL.DEVICE", "cpu", "TEST.AUG.ENABLED", True]
    with pytest.raises(
        UserError, match=r"TEST\.AUG\.ENABLED True: there is no test-time augmentation for GeneralizedRCNN"
    ):
        check_model(clq.setup_cfg(None, opts))


def test_boxes_without_area_in_the_image_are_dropped_however_the_top_k_counts():
    """A detector whose boxes lie up to 40 strides away, many of them outside a small image."""
    model = build("clq", "MODEL.CLQ.SCORE_THRESH", 0.0, "MODEL.CLQ.NMS_THRESH", 0.99).eval()
    nn.init.normal_(model.head.box_pred.weight, std=3.0)
    nn.init.constant_(model.head.scales, 20.0)
    item = {"image": torch.randint(0, 256, (3, 100, 100), dtype=torch.uint8), "height": 100, "width": 100}
    with torch.no_grad():
        candidates = model.candidates([item])[0].pred_boxes
        candidates.clip((100, 100))
        assert not candidates.nonempty().all()
        (found,) = DenseTTA(model, DatasetMapperTTA([100], 200, True))([item])
    assert len(found["instances"]) == 100
    assert found["instances"].pred_boxes.nonempty().all()
