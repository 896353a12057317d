import numpy as np
import pytest
from clq.inspection.training_images import Resizing, sample, short_side, typical_config


@pytest.mark.parametrize(
    "sides, sampling, middle", [((800,), "choice", 800), ((480, 960), "range", 720), ((640, 672, 800), "choice", 672)]
)
def test_the_short_side_is_the_middle_of_training(config, sides, sampling, middle):
    cfg = config("INPUT.MIN_SIZE_TRAIN", sides, "INPUT.MIN_SIZE_TRAIN_SAMPLING", sampling)
    assert short_side(cfg) == middle


@pytest.mark.parametrize(
    "sampling, prob, zoom", [("log", 1.0, 1.0), ("log", 0.5, 1.0), ("uniform", 1.0, 1.25), ("uniform", 0.5, 1.125)]
)
def test_the_zoom_is_the_middle_of_training(config, sampling, prob, zoom):
    aug = ["INPUT.AUG.SCALE", [0.5, 2.0], "INPUT.AUG.SCALE_SAMPLING", sampling, "INPUT.AUG.SCALE_PROB", prob]
    assert pytest.approx([zoom, zoom]) == typical_config(config(*aug)).INPUT.AUG.SCALE


def test_boxes_are_resized_and_clipped_and_crowds_left_out(config, record):
    one = record([(10, 10, 20, 30), (90, 40, 120, 60), (150, 0, 160, 10), (0, 0, 9, 9)], size=(50, 100))
    one["annotations"][3]["iscrowd"] = 1
    image = Resizing(config("INPUT.MIN_SIZE_TRAIN", (100,))).sized(one)
    assert image.size == (100, 200) and image.scale == pytest.approx(2)
    assert image.boxes.tolist() == [[20, 20, 40, 60], [180, 80, 200, 100]]  # the third one is outside


def test_a_letterbox_centres_the_image(config, record):
    image = Resizing(config(name="CLQ/clq_lite_320")).sized(record([(0, 0, 320, 160)], size=(320, 640)))
    assert image.size == (320, 320) and image.scale == pytest.approx(0.5)
    assert image.boxes == pytest.approx(np.array([[0, 80, 160, 160]]))


def test_nothing_random_is_left(config, record):
    aug = ["INPUT.AUG.CROP", [64, 64], "INPUT.AUG.ROTATE90", True, "INPUT.AUG.FLIP_VERTICAL", True]
    resizing = Resizing(config(*aug, "INPUT.AUG.SCALE", [0.5, 2.0], "INPUT.MIN_SIZE_TRAIN", (50,)))
    images = [resizing.sized(record([(1, 2, 30, 40)], size=(50, 100))) for _ in range(20)]
    assert {image.size for image in images} == {(50, 100)}
    assert all(np.allclose(image.boxes, [[1, 2, 30, 40]]) for image in images)


def test_an_image_without_objects_or_too_thin_is_none(config, record):
    resizing = Resizing(config())
    assert resizing.sized(record([])) is None
    assert resizing.sized(record([(0, 0, 1, 1)], size=(1, 10000))) is None


def test_a_sample_holds_records_with_objects_and_is_always_the_same(record):
    records = [record([(0, 0, 9, 9)] * (i % 2), name=str(i)) for i in range(40)]
    chosen = [r["file_name"] for r in sample(records, 8)]
    assert len(set(chosen)) == 8 and all(int(name) % 2 for name in chosen)
    assert chosen == [r["file_name"] for r in sample(records, 8)]
    assert len(sample(records, 100)) == 20
