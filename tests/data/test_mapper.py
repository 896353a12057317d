"""The mapper turns records into the input of the model: image, boxes, masks and the matrix of a letterbox."""

import numpy as np
import pytest
import torch
from clq.data.augmentations import build_augmentations
from clq.data.mapper import as_input, build_test_mapper, build_train_mapper
from clq.data.transforms import RandomZoomCrop, ResizedWindow
from clq.errors import UserError
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from fvcore.transforms.transform import CropTransform
from painted import BOX, LETTERBOX, config, painted
from PIL import Image
from pycocotools import mask


def record(tmp_path, boxes, **extra):
    Image.fromarray(painted()).save(tmp_path / "a.png")
    annotations = [
        {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": i, **extra} for i, box in enumerate(boxes)
    ]
    return {"file_name": str(tmp_path / "a.png"), "height": 120, "width": 160, "annotations": annotations}


def cut_at_50(monkeypatch):
    """Makes RandomZoomCrop keep the window from 50 to 100 in both directions."""
    window = ResizedWindow(source_size=(120, 160), resized_size=(120, 160), corner=(50, 50), size=(50, 50))
    monkeypatch.setattr(RandomZoomCrop, "get_transform", lambda self, image: window)


BOXES = [(0, 60, 20, 80), (20, 60, 59, 80), (30, 60, 70, 80), (60, 60, 80, 80), (46, 46, 54, 54)]


@pytest.mark.parametrize(
    "min_visible, kept",
    [
        (0.25, [2, 3, 4]),  # dropped: outside, and 9 of 39 columns (0.23); kept: a half, a whole box, a quarter
        (0.26, [2, 3]),
        (1.0, [3]),
        (0.0, [1, 2, 3, 4]),
    ],
)
def test_slivers_are_dropped_with_their_classes(tmp_path, monkeypatch, min_visible, kept):
    cut_at_50(monkeypatch)
    inside = [None, [0, 10, 9, 30], [0, 10, 20, 30], [10, 10, 30, 30], [0, 0, 4, 4]]
    mapper = build_train_mapper(config(CROP=[50, 50], MIN_VISIBLE=min_visible))
    instances = mapper(record(tmp_path, BOXES))["instances"]
    assert instances.gt_classes.tolist() == kept
    assert instances.gt_boxes.tensor.tolist() == [inside[i] for i in kept]
    assert instances.gt_boxes.tensor.dtype == torch.float32


@pytest.mark.parametrize("short_side", [0, 31, 1333])  # 120 * (31 / 120) is more than 31 in floating point
def test_without_augmentation_all_boxes_with_an_area_in_the_image_are_kept(tmp_path, short_side):
    """It does not matter how little of a box is in the image, what MIN_VISIBLE is, or how the image is resized."""
    boxes = [(150, -500, 900, 700), (159, 119, 300, 300), (0, 0, 160, 120), (5, 5, 5, 9), (200, 10, 300, 20)]
    cfg = config(MIN_VISIBLE=1.0)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (short_side,), 10000
    data = build_train_mapper(cfg)(record(tmp_path, boxes))
    assert data["instances"].gt_classes.tolist() == [0, 1, 2]
    height, width = data["image"].shape[1:]
    first = torch.tensor([150, 0, 160, 120]) * torch.tensor([width / 160, height / 120]).repeat(2)
    assert torch.allclose(data["instances"].gt_boxes.tensor[0], first)


def test_the_part_of_a_box_outside_its_image_does_not_count(tmp_path, monkeypatch):
    """By hand: the image ends at row 120, the window at row and column 100."""
    cut_at_50(monkeypatch)
    boxes = [(90, 110, 130, 500), (95, 95, 105, 5000), (90, 90, 100, 130)]
    # In the image they are 40 x 10, 10 x 25 and 10 x 30; in the window nothing, 5 x 5 (0.1) and 10 x 10 (0.33).
    mapper = build_train_mapper(config(CROP=[50, 50], MIN_VISIBLE=0.3))
    assert mapper(record(tmp_path, boxes))["instances"].gt_classes.tolist() == [2]
    mapper = build_train_mapper(config(CROP=[50, 50], MIN_VISIBLE=0.1))
    assert mapper(record(tmp_path, boxes))["instances"].gt_classes.tolist() == [1, 2]


@pytest.mark.parametrize("boxes, extra", [([], {}), ([BOX], {"iscrowd": 1}), ([(5, 5, 5, 9)], {})])
def test_images_without_a_usable_box_give_empty_instances(tmp_path, boxes, extra):
    data = build_train_mapper(config(CROP=[64, 64], ROTATE90=True, COLOR=0.3))(record(tmp_path, boxes, **extra))
    assert data["image"].shape == (3, 64, 64) and data["image"].dtype == torch.uint8
    assert len(data["instances"]) == 0 and data["instances"].gt_boxes.tensor.shape == (0, 4)


def test_without_zoom_and_crop_the_augmentations_are_detectron2s_own(tmp_path):
    data = build_train_mapper(config())(record(tmp_path, [BOX]))
    assert np.array_equal(data["image"].permute(1, 2, 0).numpy(), painted())
    assert data["instances"].gt_boxes.tensor.tolist() == [list(map(float, BOX))]
    cfg = config("INPUT.CROP.ENABLED", True, flip="horizontal")
    assert [type(a) for a in build_augmentations(cfg)] == [T.RandomCrop, T.ResizeShortestEdge, T.RandomFlip]


def test_padding_is_on_the_right_and_below_even_if_the_image_is_flipped(tmp_path):
    mapper, seen = build_train_mapper(config(CROP=[150, 200], flip="horizontal")), set()
    np.random.seed(0)
    for _ in range(8):
        data = mapper(record(tmp_path, [BOX]))
        assert (data["image"][:, 120:] == 128).all() and (data["image"][:, :, 160:] == 128).all()
        seen.add(tuple(data["instances"].gt_boxes.tensor[0].tolist()))
    assert seen == {BOX, (50, 30, 100, 50)}


@pytest.mark.parametrize("shape", [(120, 160), (200, 260)], ids=["the crop's own size", "padded"])
def test_boxes_end_where_the_first_crop_ends(tmp_path, shape):
    """INPUT.CROP keeps 40 x 50 pixels, which the window then pads; no box extends into the padding."""
    crop = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [40, 50]]
    mapper = build_train_mapper(config(*crop, CROP=list(shape), MIN_VISIBLE=0.0))
    np.random.seed(0)
    for _ in range(20):
        data = mapper(record(tmp_path, [BOX]))
        white = (data["image"][0] == 255).nonzero()
        boxes = data["instances"].gt_boxes.tensor.tolist()
        if len(white):
            (y1, x1), (y2, x2) = white.amin(dim=0).tolist(), (white.amax(dim=0) + 1).tolist()
            assert boxes == [[x1, y1, x2, y2]]
        else:
            assert boxes == []


def test_the_part_of_a_box_that_a_crop_removes_stays_removed_when_the_image_is_padded(tmp_path, monkeypatch):
    """The crop keeps 10 of the 50 columns of the box, and the window adds grey where the others were."""
    kept = CropTransform(0, 0, BOX[0] + 10, 120, 160, 120)
    monkeypatch.setattr(T.RandomCrop, "get_transform", lambda self, image: kept)
    for least, number in ((0.19, 1), (0.21, 0)):
        cfg = config("INPUT.CROP.ENABLED", True, CROP=[120, 160], MIN_VISIBLE=least)
        instances = build_train_mapper(cfg)(record(tmp_path, [BOX]))["instances"]
        assert instances.gt_boxes.tensor.tolist() == [[60, 30, 70, 50]][:number]


def test_a_letterboxed_test_record_has_the_matrix_from_the_image(tmp_path):
    cfg = config(*LETTERBOX)
    data = build_test_mapper(cfg)(record(tmp_path, [BOX]))
    assert data["image"].shape == (3, 80, 80) and (data["height"], data["width"]) == (120, 160)
    assert data["input_from_image"].tolist() == [[0.5, 0, 0], [0, 0.5, 10], [0, 0, 1]]
    assert data["input_from_image"].dtype == torch.float64
    data = build_train_mapper(cfg)(record(tmp_path, [BOX]))
    assert data["instances"].gt_boxes.tensor.tolist() == [[30, 25, 55, 35]]
    assert data["instances"].image_size == (80, 80)
    cfg.INPUT.LETTERBOX.ENABLED = False
    assert "input_from_image" not in build_test_mapper(cfg)(record(tmp_path, [BOX]))


def test_real_numbers_reach_the_model_and_the_border_changes_with_the_image(tmp_path):
    data = build_train_mapper(config(*LETTERBOX, BRIGHTNESS=0.2, COLOR_PROB=1.0))(record(tmp_path, [BOX]))
    assert data["image"].dtype == torch.float32
    black, white = data["image"][0, 0, 0], data["image"][0, 30, 40]
    assert 0 < abs(black) <= 51 and white - black == pytest.approx(255, abs=1e-3)


def test_masks_are_transformed_and_dropped_with_their_boxes(tmp_path, monkeypatch):
    """A flip moves both; a sliver is dropped with its mask."""
    cfg = config("MODEL.MASK_ON", True, FLIP_VERTICAL=True)
    triangle = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    triangle["segmentation"] = [[60, 30, 110, 30, 60, 50]]
    mapper, seen = build_train_mapper(cfg), set()
    image = {**record(tmp_path, []), "annotations": [triangle]}
    np.random.seed(0)
    for _ in range(8):
        found = mapper(image)["instances"]
        assert len(found) == len(found.gt_masks) == 1
        (polygon,) = found.gt_masks.polygons[0]
        flipped = polygon.tolist() == [60, 90, 110, 90, 60, 70]
        assert flipped or polygon.tolist() == [60, 30, 110, 30, 60, 50]
        assert found.gt_boxes.tensor.tolist() == [[60, 70, 110, 90] if flipped else [60, 30, 110, 50]]
        seen.add(flipped)
    assert len(seen) == 2
    assert not mapper({**image, "annotations": []})["instances"].has("gt_masks")
    run_length = mask.encode(np.asfortranarray(painted()[..., 0] // 255))
    with pytest.raises(UserError, match=r"a\.png with INPUT\.MASK_FORMAT polygon: Detectron2 refuses"):
        mapper({**image, "annotations": [{**triangle, "segmentation": run_length}]})

    cut_at_50(monkeypatch)
    sliver = {**triangle, "bbox": (99, 60, 150, 80), "segmentation": [[99, 60, 150, 60, 99, 80]]}
    whole = {**triangle, "bbox": (60, 60, 80, 80), "segmentation": [[60, 60, 80, 60, 60, 80]]}
    mapper = build_train_mapper(config("MODEL.MASK_ON", True, CROP=[50, 50]))
    found = mapper({**image, "annotations": [sliver, whole]})["instances"]
    assert [p.tolist() for (p,) in found.gt_masks.polygons] == [[10, 10, 30, 10, 10, 30]]
    del triangle["segmentation"]
    with pytest.raises(UserError, match=r"image .*a\.png: an object has no segmentation, which MODEL\.MASK_ON"):
        mapper(image)


@pytest.mark.parametrize("size", [0, 800])
def test_an_image_too_thin_for_a_relative_crop_is_named(tmp_path, size):
    """A tenth of one row of pixels is no row."""
    Image.fromarray(np.zeros((1, 90, 3), np.uint8)).save(tmp_path / "thin.png")
    cfg = config("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", [0.1, 0.9])
    cfg.INPUT.MIN_SIZE_TRAIN = (size,)
    thin = {"file_name": str(tmp_path / "thin.png"), "height": 1, "width": 90, "annotations": []}
    with pytest.raises(UserError, match=r"thin\.png: 90 x 1 pixels: too thin"):
        build_train_mapper(cfg)(thin)


@pytest.mark.parametrize("aug", [{}, {"SCALE": [0.5, 0.6]}], ids=str)
def test_images_that_are_too_thin_or_of_another_size_are_named(tmp_path, aug):
    Image.fromarray(np.zeros((1, 3000, 3), np.uint8)).save(tmp_path / "thin.png")
    cfg = config(**aug)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (800,), 800
    thin = {"file_name": str(tmp_path / "thin.png"), "height": 1, "width": 3000, "annotations": []}
    for mapper in (build_train_mapper(cfg), build_test_mapper(cfg)):
        with pytest.raises(UserError, match=rf"image {tmp_path}/thin\.png: 3000 x 1 pixels: too thin"):
            mapper(thin)
        with pytest.raises(UserError, match=rf"image {tmp_path}/thin\.png.*expect \(2999, 1\)"):
            mapper({**thin, "width": 2999})


@pytest.mark.filterwarnings("error")
def test_a_read_only_grey_image_becomes_an_input_of_its_own():
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    image.flags.writeable = False
    found = as_input(image)
    assert found.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    found += 1
    assert image.max() == 5
