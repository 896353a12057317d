"""Augmentations keep boxes on their objects; the mapper drops what is cut to a sliver."""

import numpy as np
import pytest
import torch
from clq.config import setup_cfg
from clq.data.mapper import (
    QuarterTurns,
    RandomColor,
    RandomZoomCrop,
    build_augmentations,
    build_test_mapper,
    build_train_mapper,
)
from clq.errors import UserError
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask

BOX = (60, 30, 110, 50)  # XYXY, in an image of 160 x 120 (width x height)


def painted():
    image = np.zeros((120, 160, 3), np.uint8)
    image[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    return image


def config(**aug):
    opts = ["INPUT.MIN_SIZE_TRAIN", "(0,)", "INPUT.FORMAT", "RGB"]
    for key, value in aug.items():
        opts += [f"INPUT.AUG.{key}", str(value)]
    return setup_cfg(None, opts)


@pytest.mark.parametrize(
    "aug",
    [
        {"ROTATE90": True},
        {"FLIP_VERTICAL": True},
        {"SCALE": [0.5, 2.0]},
        {"CROP": [90, 100]},
        {"CROP": [200, 100]},  # cut across, padded below
        {"SCALE": [0.5, 2.0], "CROP": [100, 100]},
        {"SCALE": [0.5, 2.0], "CROP": [100, 130], "ROTATE90": True, "FLIP_VERTICAL": True},
    ],
    ids=str,
)
def test_the_box_still_bounds_the_painted_pixels(aug):
    augmentation = T.AugmentationList(build_augmentations(config(**aug)))
    np.random.seed(0)
    seen = 0
    for _ in range(60):
        data = T.AugInput(painted(), boxes=np.array([BOX], dtype=float))
        augmentation(data)
        height, width = data.image.shape[:2]
        box = np.clip(data.boxes[0], 0, [width, height, width, height])
        rows, columns = np.nonzero(data.image[..., 0] > 160)  # the padding is 128
        if len(rows) == 0:
            assert min(box[2] - box[0], box[3] - box[1]) < 2  # nothing of it is left
            continue
        seen += 1
        bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(box - bounds).max() <= 1.0  # interpolation blurs an edge by up to the zoom's half pixel
    assert seen >= 30


def test_crops_have_the_size_asked_for_and_zoom_stays_in_its_range():
    np.random.seed(0)
    crop = RandomZoomCrop((0.5, 2.0), (100, 130))
    zooms = []
    for _ in range(200):
        transform = crop.get_transform(painted())
        assert transform.apply_image(painted()).shape == (100, 130, 3)
        corners = transform.apply_box(np.array([BOX], dtype=float))[0]
        zooms.append((corners[2] - corners[0]) / 50)
    assert 0.49 <= min(zooms) < 0.6 and 1.7 < max(zooms) <= 2.02
    assert abs(np.log(zooms).mean()) < 0.1  # as often smaller as larger


@pytest.mark.parametrize("k", range(4))
def test_quarter_turns_move_points_with_pixels(k):
    image = np.zeros((3, 5), np.uint8)
    image[0, 4] = 1  # its centre is the point (4.5, 0.5)
    turn = QuarterTurns(k, 3, 5)
    x, y = turn.apply_coords(np.array([[4.5, 0.5]]))[0]
    turned = turn.apply_image(image)
    assert turned.shape == ((3, 5) if k % 2 == 0 else (5, 3))
    assert turned[int(y), int(x)] == 1


def test_colour_equals_detectron2s_three_transforms(monkeypatch):
    image = np.random.default_rng(0).integers(80, 170, (12, 15, 3), dtype=np.uint8)  # stays clear of 0 and 255
    b, c, s = 1.1, 0.8, 1.2
    monkeypatch.setattr(np.random, "uniform", lambda *_: np.array([b, c, s]))
    ours = RandomColor(0.2, "RGB").get_transform(image).apply_image(image)
    bgr = RandomColor(0.2, "BGR").get_transform(image[..., ::-1]).apply_image(np.ascontiguousarray(image[..., ::-1]))
    theirs = image.astype(float)
    for augmentation, factor in [(T.RandomBrightness, b), (T.RandomContrast, c), (T.RandomSaturation, s)]:
        monkeypatch.setattr(np.random, "uniform", lambda *_, factor=factor: factor)
        theirs = augmentation(0, 0).get_transform(theirs).apply_image(theirs)
    assert np.abs(ours - theirs).max() <= 1  # rounding to whole values
    assert np.array_equal(bgr[..., ::-1], ours)


def record(tmp_path, boxes, **extra):
    Image.fromarray(painted()).save(tmp_path / "a.png")
    annotations = [
        {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": i, **extra} for i, box in enumerate(boxes)
    ]
    return {"file_name": str(tmp_path / "a.png"), "height": 120, "width": 160, "annotations": annotations}


def test_mapper_drops_slivers_and_keeps_classes_with_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr("clq.data.mapper._window", lambda length, zoom, size, position: (50, 50, 50))
    boxes = [(0, 60, 20, 80), (20, 60, 59, 80), (30, 60, 70, 80), (60, 60, 80, 80), (46, 46, 54, 54)]
    mapper = build_train_mapper(config(CROP=[50, 50], SCALE=[1.0, 1.0]))
    mapper.augmentations.augs.pop(1)  # Detectron2's flip
    instances = mapper(record(tmp_path, boxes))["instances"]  # the window is 50-100 both ways
    # gone: outside; 9 of 39 columns, 0.23. kept: half; whole; a corner of exactly a quarter.
    assert instances.gt_classes.tolist() == [2, 3, 4]
    assert instances.gt_boxes.tensor.tolist() == [[0, 10, 20, 30], [10, 10, 30, 30], [0, 0, 4, 4]]
    assert instances.gt_boxes.tensor.dtype == torch.float32


@pytest.mark.parametrize("boxes, extra", [([], {}), ([BOX], {"iscrowd": 1}), ([(5, 5, 5, 9)], {})])
def test_images_without_a_usable_box_are_ordinary_input(tmp_path, boxes, extra):
    data = build_train_mapper(config(CROP=[64, 64], ROTATE90=True, COLOR=0.3))(record(tmp_path, boxes, **extra))
    assert data["image"].shape == (3, 64, 64) and data["image"].dtype == torch.uint8
    assert len(data["instances"]) == 0 and data["instances"].gt_boxes.tensor.shape == (0, 4)


def test_without_augmentation_the_image_is_detectron2s_own(tmp_path):
    cfg = config()
    cfg.INPUT.RANDOM_FLIP = "none"
    data = build_train_mapper(cfg)(record(tmp_path, [BOX]))
    assert np.array_equal(data["image"].permute(1, 2, 0).numpy(), painted())
    assert data["instances"].gt_boxes.tensor.tolist() == [list(map(float, BOX))]


@pytest.mark.parametrize(
    "aug, message",
    [
        ({"COLOR": 1.5}, "COLOR 1.5: must be within 0"),
        ({"SCALE": [2.0, 0.5]}, r"SCALE \[2.0, 0.5\]: must be \[least, greatest\]"),
        ({"SCALE": [0.0, 1.0]}, r"SCALE .* both above 0"),
        ({"CROP": [100]}, r"CROP \[100\]: must be \[height, width\]"),
        ({"CROP": [100, 0.5]}, r"CROP .* must be \[height, width\] in pixels"),
    ],
)
def test_values_out_of_range(aug, message):
    with pytest.raises(UserError, match=rf"INPUT\.AUG\.{message}"):
        build_augmentations(config(**aug))


def test_colour_needs_three_channels():
    cfg = config(COLOR=0.3)
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(UserError, match=r"needs INPUT\.FORMAT RGB or BGR"):
        build_augmentations(cfg)


def test_masks_go_with_their_boxes(tmp_path):
    """Upside down or not; of two objects the one of which a sliver is inside goes, mask and all."""
    Image.fromarray(painted()).save(tmp_path / "a.png")
    cfg = config(FLIP_VERTICAL=True)
    cfg.INPUT.RANDOM_FLIP, cfg.MODEL.MASK_ON = "none", True
    triangle = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    triangle["segmentation"] = [[60, 30, 110, 30, 60, 50]]
    outside = {**triangle, "bbox": (159.9, 0, 300, 20), "segmentation": [[159.9, 0, 300, 0, 300, 20]]}
    record = {"file_name": str(tmp_path / "a.png"), "height": 120, "width": 160, "annotations": [outside, triangle]}
    mapper, seen = build_train_mapper(cfg), set()
    np.random.seed(0)
    for _ in range(8):
        found = mapper(record)["instances"]
        assert len(found) == len(found.gt_masks) == 1
        (polygon,) = found.gt_masks.polygons[0]
        flipped = polygon.tolist() == [60, 90, 110, 90, 60, 70]
        assert flipped or polygon.tolist() == [60, 30, 110, 30, 60, 50]
        assert found.gt_boxes.tensor.tolist() == [[60, 70, 110, 90] if flipped else [60, 30, 110, 50]]
        seen.add(flipped)
    assert len(seen) == 2
    assert not mapper({**record, "annotations": []})["instances"].has("gt_masks")
    run_length = mask.encode(np.asfortranarray(painted()[..., 0] // 255))
    with pytest.raises(UserError, match=r"a\.png with INPUT\.MASK_FORMAT polygon: Detectron2 refuses"):
        mapper({**record, "annotations": [{**triangle, "segmentation": run_length}]})
    del triangle["segmentation"]
    with pytest.raises(UserError, match=r"image .*a\.png: has an object without a segmentation, which MODEL\.MASK_ON"):
        mapper({**record, "annotations": [triangle]})


def test_images_of_which_nothing_would_be_left_are_named(tmp_path):
    Image.fromarray(np.zeros((1, 3000, 3), np.uint8)).save(tmp_path / "thin.png")
    cfg = config()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (800,), 800
    thin = {"file_name": str(tmp_path / "thin.png"), "height": 1, "width": 3000, "annotations": []}
    for mapper in (build_train_mapper(cfg), build_test_mapper(cfg)):
        with pytest.raises(UserError, match=rf"image {tmp_path}/thin\.png: 3000 x 1 pixels: too thin"):
            mapper(thin)
        with pytest.raises(UserError, match=rf"image {tmp_path}/thin\.png.*expect \(2999, 1\)"):
            mapper({**thin, "width": 2999})
