"""Mosaics and means of images: which pixels and boxes they have, and that they follow from the seed."""

import numpy as np
import pytest
import torch
from clq.data.images import ImageError
from clq.data.loader import TrainLoader
from clq.data.mapper import BoxMapper, build_train_mapper
from clq.data.mixing import Sample, Span, mean_of, span
from clq.data.mixing_mapper import MixingMapper
from clq.errors import UserError
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BoxMode
from painted import config
from PIL import Image

SCHEDULE = ["SOLVER.MAX_ITER", 100, "SOLVER.IMS_PER_BATCH", 2]


def records(folder, sizes=((120, 160),) * 4, boxes=((60, 30, 110, 50),) * 4):
    """Images (height, width) with the grey value 50 i, and one box each of class i."""
    made = []
    for i, ((height, width), box) in enumerate(zip(sizes, boxes, strict=True)):
        Image.fromarray(np.full((height, width, 3), 50 * (i + 1), np.uint8)).save(folder / f"{i}.png")
        annotations = [{"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": i}]
        size = {"height": height, "width": width}
        made.append({"file_name": str(folder / f"{i}.png"), **size, "annotations": annotations})
    return made


def mapper(*opts, **aug):
    return build_train_mapper(config(*SCHEDULE, *opts, **aug))


def center_at(monkeypatch, y, x):
    """Makes the images of one mosaic meet in a point."""
    values = iter([y, x])
    monkeypatch.setattr("clq.data.mixing_mapper.np.random.randint", lambda *_: next(values))


@pytest.mark.parametrize(
    "resized, frame, center, before, expected",
    [
        (50, 100, 60, True, (0, 50, 10)),  # all of it, ending at 60
        (80, 100, 60, True, (20, 60, 0)),  # its last 60 pixels
        (50, 100, 60, False, (0, 40, 60)),  # its first 40 pixels
        (30, 100, 60, False, (0, 30, 60)),
    ],
)
def test_a_span_touches_the_centre(resized, frame, center, before, expected):
    assert span(resized, frame, center, before=before) == Span(*expected)


def test_a_mosaic_has_its_images_around_the_centre_with_their_boxes(tmp_path, monkeypatch):
    """By hand: images of 160 x 120, halved, in a frame of 160 x 120 whose centre is (100, 50)."""
    center_at(monkeypatch, 50, 100)
    made = records(tmp_path)
    others = iter(made[1:])
    data = mapper(MOSAIC=1.0, MOSAIC_SCALE=[0.5, 0.5], MIN_VISIBLE=0.5).mix(made[0], lambda: next(others), 0)
    image, instances = data["image"], data["instances"]
    assert image.shape == (3, 120, 160) and image.dtype == torch.uint8
    expected = np.full((120, 160), 128)
    expected[0:50, 20:100] = 50  # 60 rows end at row 50, so the upper 10 are cut off
    expected[0:50, 100:160] = 100  # of 80 columns 60 fit
    expected[50:110, 20:100] = 150
    expected[50:110, 100:160] = 200
    assert (image.numpy() == expected).all()
    # The boxes halved: (30, 15, 55, 25). In the upper images 10 rows are cut off.
    assert instances.gt_boxes.tensor.tolist() == [
        [20 + 30, 5, 20 + 55, 15],
        [100 + 30, 5, 100 + 55, 15],
        [20 + 30, 50 + 15, 20 + 55, 50 + 25],
        [100 + 30, 50 + 15, 100 + 55, 50 + 25],
    ]
    assert instances.gt_classes.tolist() == [0, 1, 2, 3]
    assert data["mixed_with"] == [str(tmp_path / f"{i}.png") for i in (1, 2, 3)]
    assert "annotations" not in data and made[0]["annotations"]


@pytest.mark.parametrize("min_visible, kept", [(0.5, [0, 1, 2, 3]), (0.51, [2, 3])])
def test_boxes_that_the_mosaic_cuts_are_clipped_or_dropped(tmp_path, monkeypatch, min_visible, kept):
    """By hand, halved images: the upper left one loses 20 columns and 10 rows, the upper right one 10 rows."""
    center_at(monkeypatch, 50, 60)
    boxes = [(20, 20, 60, 60), (40, 0, 60, 40), (60, 30, 110, 50), (60, 30, 110, 50)]
    made = records(tmp_path, boxes=boxes)
    others = iter(made[1:])
    data = mapper(MOSAIC=1.0, MOSAIC_SCALE=[0.5, 0.5], MIN_VISIBLE=min_visible).mix(made[0], lambda: next(others), 0)
    # (10, 10, 30, 30) less 20 columns and 10 rows is (0, 0, 10, 20): a half. (20, 0, 30, 20) less 10 rows: a half.
    found = dict(zip(data["instances"].gt_classes.tolist(), data["instances"].gt_boxes.tensor.tolist(), strict=True))
    cut = {0: [0, 0, 10, 20], 1: [80, 0, 90, 10]}
    assert sorted(found) == kept
    assert all(found[i] == cut[i] for i in cut if i in kept)


def test_a_letterbox_is_the_frame_of_a_mosaic(tmp_path, monkeypatch):
    """By hand: 160 x 120 fits into 80 x 80 as 80 x 60; at a factor of 0.5 it is 40 x 30, in black."""
    center_at(monkeypatch, 40, 50)
    made = records(tmp_path)
    others = iter(made[1:])
    opts = ["MODEL.META_ARCHITECTURE", "CLQ", "INPUT.LETTERBOX.ENABLED", True, "INPUT.LETTERBOX.SIZE", [80, 80]]
    data = mapper(*opts, MOSAIC=1.0, MOSAIC_SCALE=[0.5, 0.5]).mix(made[0], lambda: next(others), 0)
    expected = np.zeros((80, 80))
    expected[10:40, 10:50], expected[10:40, 50:80], expected[40:70, 10:50], expected[40:70, 50:80] = 50, 100, 150, 200
    assert np.abs(data["image"].numpy()[0][11:39, 11:49] - expected[11:39, 11:49]).max() == 0
    assert (data["image"].numpy()[:, :10] == 0).all() and (data["image"].numpy()[:, :, :10] == 0).all()
    assert data["instances"].gt_boxes.tensor[0].tolist() == [10 + 15, 10 + 7.5, 10 + 27.5, 10 + 12.5]


def test_each_image_of_a_mosaic_is_interpolated_once_from_its_original(tmp_path, monkeypatch):
    """Its pixels are those of Pillow's one resize of the whole original, up to rounding."""
    center_at(monkeypatch, 60, 80)
    made = records(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "0.png")
    others = iter(made[1:])
    data = mapper(MOSAIC=1.0, MOSAIC_SCALE=[0.7, 0.7]).mix(made[0], lambda: next(others), 0)
    whole = np.asarray(Image.fromarray(noise).resize((112, 84), Image.Resampling.BILINEAR))
    found = data["image"].numpy().transpose(1, 2, 0)[:60, :80].astype(int)
    assert np.abs(found - whole[84 - 60 :, 112 - 80 :]).max() <= 2


def test_a_mean_has_the_pixels_and_boxes_of_both(tmp_path):
    """By hand: the second image is higher and narrower than the first."""
    first = Sample(np.full((4, 6, 1), 100, np.uint8), np.array([[0.0, 0, 2, 2]]), np.array([7]))
    boxes = np.array([[0.0, 0, 3, 4], [0, 3, 3, 6], [0, 3, 2, 7]])  # inside; a third inside; a quarter
    second = Sample(np.full((8, 3, 1), 201, np.uint8), boxes, np.array([1, 2, 3]))
    mean = mean_of(first, second, 0.25, min_visible=0.3)
    assert mean.image[..., 0].tolist() == [[176, 176, 176, 100, 100, 100]] * 4  # 175.75
    assert mean.image.dtype == np.uint8
    assert mean.boxes.tolist() == [[0, 0, 2, 2], [0, 0, 3, 4], [0, 3, 3, 4]]
    assert mean.classes.tolist() == [7, 1, 2]
    blurred = Sample(second.image.astype(np.float32) + 0.5, second.boxes, second.classes)
    assert mean_of(first, blurred, 0.5, min_visible=0.3).image[0, 0, 0] == pytest.approx(150.75)


def test_mixup_mixes_whole_images(tmp_path):
    made = records(tmp_path)
    np.random.seed(0)
    means = []
    for _ in range(200):
        data = mapper(MIXUP=1.0).mix(made[0], lambda: made[3], 0)
        assert data["instances"].gt_classes.tolist() == [0, 3]
        means.append((data["image"].unique().item() - 50) / 150)  # the weight of the second
    assert np.mean(means) == pytest.approx(0.5, abs=0.02)
    assert np.std(means) == pytest.approx(0.062, abs=0.01)  # of Beta(32, 32): 1 / (2 sqrt(65))


def test_probabilities_and_the_end_of_mixing(tmp_path):
    """SOLVER.MAX_ITER 100 of 2 images: from sample 180 on, nothing is mixed."""
    made = records(tmp_path)
    mixer = mapper(MOSAIC=0.5, MIXUP=0.25, MIXING_ENDS=0.9)
    np.random.seed(0)
    counts = [len(mixer.mix(made[0], lambda: made[1], 179).get("mixed_with", [])) for _ in range(400)]
    shares = np.bincount(counts, minlength=5) / 400
    assert shares == pytest.approx([0.375, 0.125, 0, 0.375, 0.125], abs=0.06)
    assert all("mixed_with" not in mixer.mix(made[0], lambda: made[1], 180) for _ in range(50))


def test_colors_change_after_the_mosaic_is_made_and_turns_before(tmp_path):
    """All images have one grey value, and one number is added to all of them and to what is around them."""
    made = records(tmp_path)
    mixer = mapper(MOSAIC=1.0, MOSAIC_SCALE=[0.3, 0.3], ROTATE90=True, BRIGHTNESS=0.2, COLOR_PROB=1.0)
    np.random.seed(0)
    data = mixer.mix(made[0], lambda: made[0], 0)
    assert data["image"].dtype == torch.float32
    grey = data["image"].unique()
    assert (grey - grey[0]).tolist() == pytest.approx([0, 128 - 50], abs=1e-4) and grey[0] != 50
    shapes = {tuple(mixer.mix(made[0], lambda: made[1], 0)["image"].shape) for _ in range(20)}
    assert shapes == {(3, 120, 160), (3, 160, 120)}  # the frame is that of the first image, turned or not


def test_an_image_without_objects_can_be_mixed(tmp_path):
    made = records(tmp_path)
    made[0]["annotations"] = []
    np.random.seed(0)
    data = mapper(MOSAIC=1.0).mix(made[0], lambda: made[0], 0)
    assert data["instances"].gt_boxes.tensor.shape == (0, 4) and len(data["instances"].gt_classes) == 0


def test_an_error_names_the_image_that_cannot_be_used(tmp_path):
    made = records(tmp_path)
    (tmp_path / "1.png").write_bytes(b"damaged")
    for aug in ({"MOSAIC": 1.0}, {"MIXUP": 1.0}):
        with pytest.raises(ImageError) as caught:
            mapper(**aug).mix(made[0], lambda: made[1], 0)
        assert caught.value.file_name == str(tmp_path / "1.png")


def load(folder, start, workers=0, on_left_out=None):
    mixer = mapper(MOSAIC=0.5, MIXUP=0.5, flip="horizontal")
    loader = TrainLoader(
        records(folder) if on_left_out is None else on_left_out[0],
        mixer,
        lambda seed, dataset: TrainingSampler(len(dataset), seed=seed),
        seed=3,
        batch_size=2,
        group_by_shape=False,
        num_workers=workers,
        on_left_out=None if on_left_out is None else on_left_out[1],
    )
    loader.start = start
    batches = iter(loader)
    return [next(batches) for _ in range(6 - start)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_mixes_the_same_images(tmp_path, workers):
    whole = load(tmp_path, 0)
    assert any("mixed_with" in data for batch in whole for data in batch)
    for batch, expected in zip(load(tmp_path, 3, workers), whole[3:], strict=True):
        for data, other in zip(batch, expected, strict=True):
            assert torch.equal(data["image"], other["image"])
            assert data.get("mixed_with") == other.get("mixed_with")
            assert torch.equal(data["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)


def test_a_damaged_image_is_left_out_by_its_own_name(tmp_path):
    made, seen = records(tmp_path), set()
    (tmp_path / "2.png").write_bytes(b"damaged")
    load(tmp_path, 0, on_left_out=(made, lambda path, reason: seen.add(path)))
    assert seen == {str(tmp_path / "2.png")}


def test_without_a_probability_the_mapper_is_the_usual_one():
    assert type(mapper()) is BoxMapper
    assert isinstance(mapper(MIXUP=0.1), MixingMapper)


@pytest.mark.parametrize("aug", [{"MOSAIC": 1.5}, {"MIXUP": -0.1}, {"MOSAIC_SCALE": [1.0, 0.5]}, {"MIXING_ENDS": 2.0}])
def test_values_out_of_range_are_refused(aug):
    with pytest.raises(UserError, match=rf"^INPUT\.AUG\.{next(iter(aug))} "):
        mapper(**aug)


def test_masks_are_not_mixed():
    with pytest.raises(UserError, match=r"MODEL\.MASK_ON True: masks cannot be mixed"):
        mapper("MODEL.MASK_ON", True, MOSAIC=0.5)
