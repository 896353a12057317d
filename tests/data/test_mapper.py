"""From records to the model's input: the keys that augment, the boxes that are kept, the letterbox."""

import numpy as np
import pytest
import torch
from clq.config import setup_cfg
from clq.data.augmentations import build_augmentations, build_test_augmentations
from clq.data.colors import RandomColor, RandomFloatColor
from clq.data.mapper import build_test_mapper, build_train_mapper
from clq.data.transforms import Letterbox, RandomZoomCrop, ResizedWindow
from clq.errors import UserError
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from fvcore.transforms.transform import CropTransform
from PIL import Image
from pycocotools import mask

BOX = (60, 30, 110, 50)  # XYXY, in an image of 160 x 120 (width x height)
LETTERBOX = ["MODEL.META_ARCHITECTURE", "CLQ", "INPUT.LETTERBOX.ENABLED", True, "INPUT.LETTERBOX.SIZE", [80, 80]]


def painted():
    image = np.zeros((120, 160, 3), np.uint8)
    image[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    return image


def config(*opts, flip="none", **aug):
    opts = ["INPUT.MIN_SIZE_TRAIN", "(0,)", "INPUT.FORMAT", "RGB", "INPUT.RANDOM_FLIP", flip, *opts]
    for key, value in aug.items():
        opts += [f"INPUT.AUG.{key}", str(value)]
    return setup_cfg(None, opts)


def record(tmp_path, boxes, **extra):
    Image.fromarray(painted()).save(tmp_path / "a.png")
    annotations = [
        {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": i, **extra} for i, box in enumerate(boxes)
    ]
    return {"file_name": str(tmp_path / "a.png"), "height": 120, "width": 160, "annotations": annotations}


def cut_at_50(monkeypatch):
    """Makes RandomZoomCrop keep the window 50-100 both ways."""
    window = ResizedWindow(120, 160, 120, 160, 50, 50, 50, 50)
    monkeypatch.setattr(RandomZoomCrop, "get_transform", lambda self, image: window)


BOXES = [(0, 60, 20, 80), (20, 60, 59, 80), (30, 60, 70, 80), (60, 60, 80, 80), (46, 46, 54, 54)]


@pytest.mark.parametrize(
    "min_visible, kept",
    [
        (0.25, [2, 3, 4]),  # gone: outside; 9 of 39 columns, 0.23. Kept: half; whole; a corner of exactly a quarter.
        (0.26, [2, 3]),
        (1.0, [3]),
        (0.0, [1, 2, 3, 4]),
    ],
)
def test_mapper_drops_slivers_and_keeps_classes_with_boxes(tmp_path, monkeypatch, min_visible, kept):
    cut_at_50(monkeypatch)
    inside = [None, [0, 10, 9, 30], [0, 10, 20, 30], [10, 10, 30, 30], [0, 0, 4, 4]]
    mapper = build_train_mapper(config(CROP=[50, 50], MIN_VISIBLE=min_visible))
    instances = mapper(record(tmp_path, BOXES))["instances"]
    assert instances.gt_classes.tolist() == kept
    assert instances.gt_boxes.tensor.tolist() == [inside[i] for i in kept]
    assert instances.gt_boxes.tensor.dtype == torch.float32


@pytest.mark.parametrize("short_side", [0, 31, 1333])  # 120 * (31 / 120) is more than 31 in floating point
def test_without_augmentation_all_boxes_with_an_area_in_the_image_are_kept(tmp_path, short_side):
    """However little of a box lies in the image; resizing changes nothing, whatever MIN_VISIBLE is."""
    boxes = [(150, -500, 900, 700), (159, 119, 300, 300), (0, 0, 160, 120), (5, 5, 5, 9), (200, 10, 300, 20)]
    cfg = config(MIN_VISIBLE=1.0)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (short_side,), 10000
    data = build_train_mapper(cfg)(record(tmp_path, boxes))
    assert data["instances"].gt_classes.tolist() == [0, 1, 2]
    height, width = data["image"].shape[1:]
    first = torch.tensor([150, 0, 160, 120]) * torch.tensor([width / 160, height / 120]).repeat(2)
    assert torch.allclose(data["instances"].gt_boxes.tensor[0], first)


def test_what_a_box_has_outside_its_image_does_not_count_against_it(tmp_path, monkeypatch):
    """By hand: the image ends at row 120, the window at row and column 100."""
    cut_at_50(monkeypatch)
    boxes = [(90, 110, 130, 500), (95, 95, 105, 5000), (90, 90, 100, 130)]
    # In the image: 40 x 10, 10 x 25, 10 x 30. In the window: none, 5 x 5 (0.1), 10 x 10 (0.33).
    mapper = build_train_mapper(config(CROP=[50, 50], MIN_VISIBLE=0.3))
    assert mapper(record(tmp_path, boxes))["instances"].gt_classes.tolist() == [2]
    mapper = build_train_mapper(config(CROP=[50, 50], MIN_VISIBLE=0.1))
    assert mapper(record(tmp_path, boxes))["instances"].gt_classes.tolist() == [1, 2]


@pytest.mark.parametrize("boxes, extra", [([], {}), ([BOX], {"iscrowd": 1}), ([(5, 5, 5, 9)], {})])
def test_images_without_a_usable_box_are_ordinary_input(tmp_path, boxes, extra):
    data = build_train_mapper(config(CROP=[64, 64], ROTATE90=True, COLOR=0.3))(record(tmp_path, boxes, **extra))
    assert data["image"].shape == (3, 64, 64) and data["image"].dtype == torch.uint8
    assert len(data["instances"]) == 0 and data["instances"].gt_boxes.tensor.shape == (0, 4)


def test_without_zoom_and_crop_image_and_boxes_are_detectron2s_own(tmp_path):
    data = build_train_mapper(config())(record(tmp_path, [BOX]))
    assert np.array_equal(data["image"].permute(1, 2, 0).numpy(), painted())
    assert data["instances"].gt_boxes.tensor.tolist() == [list(map(float, BOX))]
    cfg = config("INPUT.CROP.ENABLED", True, flip="horizontal")
    assert [type(a) for a in build_augmentations(cfg)] == [T.RandomCrop, T.ResizeShortestEdge, T.RandomFlip]


def test_zoom_and_crop_take_the_place_of_the_resizing():
    """Before it, what only selects, mirrors and turns pixels; after it, colours on the fewest pixels."""
    every = {"CROP": [50, 60], "SCALE": [0.6, 1.4], "ROTATE90": True, "COLOR": 0.2, "BRIGHTNESS": 0.2}
    augmentations = build_augmentations(config("INPUT.CROP.ENABLED", True, flip="horizontal", **every))
    names = [type(a).__name__ for a in augmentations]
    own = ["RandomQuarterTurns", "RandomZoomCrop", "RandomColor", "RandomFloatColor"]
    assert names == ["RandomCrop", "RandomFlip", *own]
    (zoom,) = build_augmentations(config(SCALE=[0.6, 1.4], SCALE_SAMPLING="uniform", SCALE_PROB=0.5))
    assert (zoom.zoom.scale, zoom.zoom.sampling, zoom.zoom.prob, zoom.size) == ((0.6, 1.4), "uniform", 0.5, None)


def test_padding_is_right_and_below_on_mirrored_images_too(tmp_path):
    mapper, seen = build_train_mapper(config(CROP=[150, 200], flip="horizontal")), set()
    np.random.seed(0)
    for _ in range(8):
        data = mapper(record(tmp_path, [BOX]))
        assert (data["image"][:, 120:] == 128).all() and (data["image"][:, :, 160:] == 128).all()
        seen.add(tuple(data["instances"].gt_boxes.tensor[0].tolist()))
    assert seen == {BOX, (50, 30, 100, 50)}


@pytest.mark.parametrize("shape", [(120, 160), (200, 260)], ids=["the crop's own size", "padded"])
def test_boxes_end_where_the_first_crop_ends(tmp_path, shape):
    """INPUT.CROP keeps 40 x 50 of the image, which the window then pads: no box reaches into the padding."""
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


def test_what_a_crop_leaves_of_a_box_counts_whatever_is_padded_after_it(tmp_path, monkeypatch):
    """The crop keeps 10 of 50 columns of the box, a fifth; the window adds grey where the rest was."""
    kept = CropTransform(0, 0, BOX[0] + 10, 120, 160, 120)
    monkeypatch.setattr(T.RandomCrop, "get_transform", lambda self, image: kept)
    for least, number in ((0.19, 1), (0.21, 0)):
        cfg = config("INPUT.CROP.ENABLED", True, CROP=[120, 160], MIN_VISIBLE=least)
        instances = build_train_mapper(cfg)(record(tmp_path, [BOX]))["instances"]
        assert instances.gt_boxes.tensor.tolist() == [[60, 30, 70, 50]][:number]


@pytest.mark.parametrize(
    "aug, message",
    [
        ({"COLOR": 1.5}, "COLOR 1.5: must be within 0"),
        ({"SCALE": [2.0, 0.5]}, r"SCALE \[2.0, 0.5\]: must be \[least, greatest\]"),
        ({"SCALE": [0.0, 1.0]}, r"SCALE .* from 0\.001 to 1000"),
        ({"SCALE": [1.0, "inf"]}, r"SCALE .* from 0\.001 to 1000"),
        ({"SCALE": [1e-300, 1.0]}, r"SCALE .* from 0\.001 to 1000"),
        ({"CONTRAST": [0.0, "a"]}, r"CONTRAST .* finite, none below 0"),
        ({"SCALE_SAMPLING": "linear"}, "SCALE_SAMPLING linear: must be log or uniform"),
        ({"SCALE_PROB": 1.5}, "SCALE_PROB 1.5: must be within 0 and 1"),
        ({"SHIFT_PROB": -0.5}, "SHIFT_PROB -0.5: must be within 0 and 1"),
        ({"SHIFT": 0.2}, r"SHIFT 0\.2: needs INPUT\.LETTERBOX\.ENABLED True"),
        ({"CROP": [100]}, r"CROP \[100\]: must be \[height, width\]"),
        ({"CROP": [100, 0.5]}, r"CROP .* must be \[height, width\] in pixels"),
        ({"MIN_VISIBLE": 1.1}, "MIN_VISIBLE 1.1: must be within 0 and 1"),
        ({"BRIGHTNESS": -0.1}, r"BRIGHTNESS -0.1: must be within 0 \(off\) and 1"),
        ({"CONTRAST": [1.0]}, r"CONTRAST \[1\.0\]: must be \[least, greatest\] factor"),
        ({"SATURATION": [-0.5, 1.0]}, r"SATURATION .* none below 0"),
        ({"COLOR_PROB": 2.0}, "COLOR_PROB 2.0: must be within 0 and 1"),
    ],
)
def test_values_out_of_range(aug, message):
    with pytest.raises(UserError, match=rf"INPUT\.AUG\.{message}"):
        build_augmentations(config(**aug))


@pytest.mark.parametrize("aug", [{"COLOR": 0.3}, {"SATURATION": [0.5, 1.2]}], ids=str)
def test_colour_needs_three_channels(aug):
    cfg = config(**aug)
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(UserError, match=r"needs INPUT\.FORMAT RGB or BGR; set it to .* for L"):
        build_augmentations(cfg)
    cfg = config(BRIGHTNESS=0.2, CONTRAST=[0.6, 1.4])
    cfg.INPUT.FORMAT = "L"
    assert build_augmentations(cfg)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["INPUT.LETTERBOX.SIZE", [320]], r"LETTERBOX\.SIZE \[320\]: must be \[height, width\] in pixels"),
        (["INPUT.LETTERBOX.SIZE", [320, 0]], r"LETTERBOX\.SIZE \[320, 0\]: must be"),
        (["INPUT.LETTERBOX.SIZE", [320.5, 320]], r"LETTERBOX\.SIZE \[320\.5, 320\]: must be"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], r"LETTERBOX\.ENABLED True: RetinaNet models do not read it"),
        (["TEST.AUG.ENABLED", True], r"does not go with TEST\.AUG\.ENABLED; unset one of the two"),
        (["INPUT.CROP.ENABLED", True], r"does not go with INPUT\.CROP\.ENABLED"),
        (["INPUT.AUG.CROP", [80, 80]], r"does not go with INPUT\.AUG\.CROP"),
        (["INPUT.AUG.ROTATE90", True], r"does not go with INPUT\.AUG\.ROTATE90"),
        (["INPUT.AUG.FLIP_VERTICAL", True], r"does not go with INPUT\.AUG\.FLIP_VERTICAL"),
        (["INPUT.RANDOM_FLIP", "vertical"], r"RANDOM_FLIP vertical: with INPUT\.LETTERBOX it is horizontal or none"),
        (
            ["INPUT.RANDOM_FLIP", "Horizontal"],
            r"RANDOM_FLIP Horizontal: with INPUT\.LETTERBOX it is horizontal or none",
        ),
        (["INPUT.AUG.SHIFT", 0.6], r"INPUT\.AUG\.SHIFT 0\.6: must be within 0 \(off\) and 0\.5"),
    ],
)
def test_what_a_letterbox_refuses(opts, message):
    with pytest.raises(UserError, match=message):
        build_augmentations(config(*LETTERBOX, *opts))


def test_a_letterbox_replaces_the_resizing_in_training_and_test():
    cfg = config(*LETTERBOX, "INPUT.MIN_SIZE_TEST", 800, SCALE=[0.6, 1.4], SHIFT=0.2, BRIGHTNESS=0.2, COLOR=0.1)
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    letterbox, *colors = build_augmentations(cfg)
    assert [type(c) for c in colors] == [RandomColor, RandomFloatColor]
    assert (letterbox.size, letterbox.zoom.scale) == ((80, 80), (0.6, 1.4))
    assert (letterbox.flip_prob, letterbox.shift, letterbox.shift_prob) == (0.5, 0.2, 1.0)
    (test,) = build_test_augmentations(cfg)
    assert type(test) is Letterbox
    assert (test.zoom.scale, test.flip_prob, test.shift) == ((1.0, 1.0), 0.0, 0.0)


def test_a_letterboxed_record_has_the_way_back(tmp_path):
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


def test_colours_of_real_numbers_reach_the_model_borders_included(tmp_path):
    data = build_train_mapper(config(*LETTERBOX, BRIGHTNESS=0.2, COLOR_PROB=1.0))(record(tmp_path, [BOX]))
    assert data["image"].dtype == torch.float32
    black, white = data["image"][0, 0, 0], data["image"][0, 30, 40]
    assert 0 < abs(black) <= 51 and white - black == pytest.approx(255, abs=1e-3)


def test_masks_go_with_their_boxes(tmp_path, monkeypatch):
    """Upside down or not; of two objects the one of which a sliver is inside goes, mask and all."""
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
    with pytest.raises(UserError, match=r"image .*a\.png: has an object without a segmentation, which MODEL\.MASK_ON"):
        mapper(image)


@pytest.mark.parametrize("size", [0, 800])
def test_a_relative_crop_of_a_thin_image_is_named(tmp_path, size):
    """A tenth of one row is none."""
    Image.fromarray(np.zeros((1, 90, 3), np.uint8)).save(tmp_path / "thin.png")
    cfg = config("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", [0.1, 0.9])
    cfg.INPUT.MIN_SIZE_TRAIN = (size,)
    thin = {"file_name": str(tmp_path / "thin.png"), "height": 1, "width": 90, "annotations": []}
    with pytest.raises(UserError, match=r"thin\.png: 90 x 1 pixels: too thin"):
        build_train_mapper(cfg)(thin)


@pytest.mark.parametrize("aug", [{}, {"SCALE": [0.5, 0.6]}], ids=str)
def test_images_of_which_nothing_would_be_left_are_named(tmp_path, aug):
    Image.fromarray(np.zeros((1, 3000, 3), np.uint8)).save(tmp_path / "thin.png")
    cfg = config(**aug)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (800,), 800
    thin = {"file_name": str(tmp_path / "thin.png"), "height": 1, "width": 3000, "annotations": []}
    for mapper in (build_train_mapper(cfg), build_test_mapper(cfg)):
        with pytest.raises(UserError, match=rf"image {tmp_path}/thin\.png: 3000 x 1 pixels: too thin"):
            mapper(thin)
        with pytest.raises(UserError, match=rf"image {tmp_path}/thin\.png.*expect \(2999, 1\)"):
            mapper({**thin, "width": 2999})
