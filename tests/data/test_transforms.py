"""Geometric transforms move boxes with their objects, and interpolate only once, from the original pixels."""

import numpy as np
import pytest
from clq.data.augmentations import build_augmentations
from clq.data.transforms import (
    Letterbox,
    QuarterTurns,
    RandomZoomCrop,
    ResizedWindow,
    Warp,
    Zoom,
    letterbox_matrix,
)
from detectron2.data import transforms as T
from painted import BOX, config, painted
from PIL import Image

NO_RESIZING = T.ResizeShortestEdge((0,), sample_style="choice")


def window(resized_size, corner, size):
    """A window of the painted image."""
    return ResizedWindow(source_size=(120, 160), resized_size=resized_size, corner=corner, size=size)


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("short_side", [0, 90])
@pytest.mark.parametrize(
    "aug",
    [
        {"ROTATE90": True},
        {"FLIP_VERTICAL": True},
        {"SCALE": [0.5, 2.0]},
        {"CROP": [90, 100]},
        {"CROP": [200, 100]},  # narrower than the image, and padded below
        {"SCALE": [0.5, 2.0], "CROP": [100, 100]},
        {"SCALE": [0.5, 2.0], "CROP": [100, 130], "ROTATE90": True, "FLIP_VERTICAL": True},
    ],
    ids=str,
)
def test_the_box_still_bounds_the_painted_pixels(aug, short_side):
    size = ["INPUT.MIN_SIZE_TRAIN", f"({short_side},)"]
    augmentation = T.AugmentationList(build_augmentations(config(*size, flip="horizontal", **aug)))
    np.random.seed(0)
    seen = 0
    for _ in range(60):
        data = T.AugInput(painted(), boxes=np.array([BOX], dtype=float))
        augmentation(data)
        height, width = data.image.shape[:2]
        box = np.clip(data.boxes[0], 0, [width, height, width, height])
        rows, columns = np.nonzero(data.image[..., 0] > 160)  # the padding is 128
        if len(rows) == 0:
            assert min(box[2] - box[0], box[3] - box[1]) < 2  # nothing is left of it
            continue
        seen += 1
        bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(box - bounds).max() <= 1.0  # interpolation blurs an edge by up to the zoom's half pixel
    assert seen >= 30


def test_crops_have_their_size_lie_all_over_the_image_and_zoom_within_the_range():
    np.random.seed(0)
    crop = RandomZoomCrop(NO_RESIZING, zoom=Zoom((0.5, 2.0)), size=(100, 130))
    zooms, corners = [], []
    for _ in range(200):
        transform = crop.get_transform(painted())
        assert transform.apply_image(painted()).shape == (100, 130, 3)
        box = transform.apply_box(np.array([BOX], dtype=float))[0]
        zooms.append((box[2] - box[0]) / 50)
        (y, x), (new_h, new_w) = transform.corner, transform.resized_size
        corners.append((x / max(1, new_w - 130), y / max(1, new_h - 100)))
    assert 0.49 <= min(zooms) < 0.6 and 1.7 < max(zooms) <= 2.02
    assert abs(np.log(zooms).mean()) < 0.1  # reduced as often as enlarged
    assert np.min(corners) == 0 and np.max(corners, axis=0) == pytest.approx([1, 1], abs=0.05)  # all over the image


@pytest.mark.parametrize("sampling, mean", [("uniform", 1.25), ("log", 1.5 / np.log(4))])
def test_zoom_factors_have_the_given_probability_and_distribution(sampling, mean):
    np.random.seed(0)
    drawn = np.array([Zoom((0.5, 2.0), sampling, prob=0.25).draw() for _ in range(8000)])
    zooms = drawn[drawn != 1]
    assert len(zooms) / len(drawn) == pytest.approx(0.25, abs=0.02)
    assert zooms.mean() == pytest.approx(mean, abs=0.04)  # of the uniform density, or of 1 / (x log 4)
    assert 0.5 <= zooms.min() < 0.51 and 1.98 < zooms.max() <= 2


def whole_then_cut(image, transform):
    """The slow reference: resizes the whole image, then cuts out the window and pads it with grey."""
    (new_h, new_w), (y, x), (out_h, out_w) = transform.resized_size, transform.corner, transform.size
    whole = Image.fromarray(image.squeeze()).resize((new_w, new_h), Image.Resampling.BILINEAR)
    part = np.asarray(whole).reshape(new_h, new_w, -1)[y : y + out_h, x : x + out_w]
    out = np.full((out_h, out_w, image.shape[2]), 128, np.uint8)
    out[: part.shape[0], : part.shape[1]] = part
    return out


@pytest.mark.parametrize("short_side", [0, 50, 301])
@pytest.mark.parametrize("size, channels", [((90, 100), 1), ((90, 100), 3), ((9, 12), 3)])
def test_the_window_equals_that_of_the_whole_image_resized_once(short_side, size, channels):
    image = noise(120, 163, channels)
    np.random.seed(1)
    crop = RandomZoomCrop(T.ResizeShortestEdge((short_side,), 333, "choice"), zoom=Zoom((0.3, 3.0)), size=size)
    padded = set()
    for _ in range(40):
        transform = crop.get_transform(image)
        difference = transform.apply_image(image).astype(int) - whole_then_cut(image, transform)
        assert np.abs(difference).max() <= 1  # rounding
        padded.add(transform.resized_size[0] < size[0])
    assert padded == ({False, True} if size == (90, 100) else {False})


def test_a_zoom_that_undoes_the_resizing_gives_the_original_pixels():
    """The short side is resized from 200 to 100 and zoomed by 2, which in two steps would lose half of the detail."""
    image = noise(200, 240)
    cfg = config("INPUT.MIN_SIZE_TRAIN", "(100,)", SCALE=[2.0, 2.0], CROP=[80, 90])
    (augmentation,) = build_augmentations(cfg)
    transform = augmentation.get_transform(image)
    y, x = transform.corner
    assert np.array_equal(transform.apply_image(image), image[y : y + 80, x : x + 90])
    halved = Image.fromarray(image).resize((120, 100), Image.Resampling.BILINEAR)
    two_steps = np.asarray(halved.resize((240, 200), Image.Resampling.BILINEAR))
    assert two_steps.std() < 0.5 * image.std()


@pytest.mark.parametrize("new_h, new_w, y, x", [(50, 77, 7, 12), (231, 338, 80, 101)])
def test_pixels_move_as_coordinates_do(new_h, new_w, y, x):
    """On ramps, which interpolation preserves, the value of a pixel shows where in the image it comes from."""
    rows, columns = np.mgrid[:120, :160]
    image = np.stack([columns + 40, 2 * rows, 0 * rows], axis=-1).astype(np.uint8)
    transform = window((new_h, new_w), (y, x), (30, 50))
    values = transform.apply_image(image).astype(float)
    centers = transform.apply_coords(np.stack([columns + 0.5, rows + 0.5], axis=-1).reshape(-1, 2).astype(float))
    inside = ((centers > 2) & (centers < [48, 28])).all(axis=1)
    left, top = centers[inside].T
    assert inside.sum() > 50
    for channel in range(2):
        found = bilinear(values[..., channel], left - 0.5, top - 0.5)
        error = found - image[..., channel].ravel()[inside]
        assert np.abs(error).max() <= 0.75 and abs(error.mean()) <= 0.05  # values are rounded twice


def bilinear(image, x, y):
    """Interpolates between pixels; x and y are 0 at the centre of the first pixel."""
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    u, v = x - x0, y - y0
    upper = image[y0, x0] * (1 - u) + image[y0, x0 + 1] * u
    lower = image[y0 + 1, x0] * (1 - u) + image[y0 + 1, x0 + 1] * u
    return upper * (1 - v) + lower * v


def test_pillow_gets_only_the_part_of_the_image_that_it_reads(monkeypatch):
    sizes, fromarray = [], Image.fromarray
    monkeypatch.setattr(Image, "fromarray", lambda array: sizes.append(array.shape) or fromarray(array))
    transform = ResizedWindow(source_size=(200, 300), resized_size=(200, 300), corner=(100, 150), size=(40, 50))
    transform.apply_image(np.zeros((200, 300, 3), np.uint8))
    ((height, width, _),) = sizes
    assert 40 <= height <= 46 and 50 <= width <= 56


def test_masks_follow_the_window():
    """A mask of the painted pixels keeps its type, moves with the pixels and is 0 in the padding."""
    mask = painted()[..., 0] > 0
    for transform in (
        window((120, 160), (20, 50), (60, 130)),
        window((240, 320), (50, 110), (80, 120)),
        window((60, 80), (0, 0), (90, 100)),
    ):
        moved = transform.apply_segmentation(mask)
        assert moved.dtype == bool
        x1, y1, x2, y2 = transform.apply_box(np.array([BOX]))[0].astype(int)
        expected = np.zeros(transform.size, bool)
        expected[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
        assert np.array_equal(moved, expected)


def test_masks_take_the_nearest_pixels():
    rows, columns = np.mgrid[:120, :160]
    transform = window((47, 71), (5, 9), (30, 40))
    centers = np.mgrid[5:35, 9:49] + 0.5  # of the window's pixels, in the resized image
    for axis, (index, scale) in enumerate(((rows, 120 / 47), (columns, 160 / 71))):
        assert np.abs(transform.apply_segmentation(index) + 0.5 - centers[axis] * scale).max() <= 0.5


def test_a_letterbox_fits_and_centres_the_image():
    """In a frame of 80 x 80, an image of 160 x 120 is halved, with 10 black rows of pixels above and below."""
    halved = letterbox_matrix((120, 160), (80, 80))
    assert halved.tolist() == [[0.5, 0, 0], [0, 0.5, 10], [0, 0, 1]]
    assert letterbox_matrix((30, 40), (80, 80)).tolist() == [[2, 0, 0], [0, 2, 10], [0, 0, 1]]
    assert letterbox_matrix((120, 160), (60, 160)).tolist() == [[0.5, 0, 40], [0, 0.5, 0], [0, 0, 1]]
    transform = Letterbox((80, 80)).get_transform(painted())
    assert np.array_equal(transform.matrix, halved)
    assert transform.apply_box(np.array([BOX])).tolist() == [[30, 25, 55, 35]]
    assert transform.inverse().apply_box(np.array([[30.0, 25, 55, 35]])).tolist() == [list(map(float, BOX))]
    image = transform.apply_image(np.full((120, 160, 3), 200, np.uint8))
    assert image.shape == (80, 80, 3) and (image[10:70] == 200).all()
    assert (image[:10] == 0).all() and (image[70:] == 0).all()
    assert transform.inverse().apply_image(image).shape == (120, 160, 3)


def test_a_letterbox_zooms_flips_and_shifts_in_this_order():
    """By hand: flipped and doubled about its centre, which moves to (40, 90); then halved and moved down by 10."""
    matrix = letterbox_matrix((120, 160), (80, 80), zoom=2.0, flipped=True, center=(40, 90))
    assert matrix.tolist() == [[-1, 0, 100], [0, 1, -5], [0, 0, 1]]
    box = Warp(matrix, (120, 160), (80, 80)).apply_box(np.array([BOX]))
    assert box.tolist() == [[100 - 110, 30 - 5, 100 - 60, 50 - 5]]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_warp_interpolates_between_the_four_nearest_pixels(channels):
    """The reference is plain numpy; outside the image everything is black."""
    image = noise(30, 40, channels)
    matrix = letterbox_matrix((30, 40), (24, 32), zoom=1.7, flipped=True, center=(13.0, 21.0))
    x, y = Warp(matrix, (30, 40), (24, 32)).inverse().apply_coords(np.mgrid[:32, :24].reshape(2, -1).T.astype(float)).T
    framed = np.pad(image.astype(float), [(60, 60), (60, 60), (0, 0)])
    expected = np.stack([bilinear(framed[..., c], x + 60, y + 60) for c in range(channels)], axis=-1)
    found = Warp(matrix, (30, 40), (24, 32)).apply_image(image)
    assert found.shape == (24, 32, channels)
    difference = found - expected.reshape(32, 24, channels).transpose(1, 0, 2)
    assert np.abs(difference).max() <= 5  # OpenCV interpolates in steps of 1/32 of a pixel


def test_a_letterbox_zooms_flips_and_shifts_with_the_given_probabilities_and_ranges():
    np.random.seed(0)
    box = Letterbox((96, 96), zoom=Zoom((0.6, 1.4), "uniform", 0.5), flip_prob=0.5, shift=0.2, shift_prob=0.5)
    matrices = np.stack([box.get_transform(painted()).matrix for _ in range(4000)])
    zoom = np.abs(matrices[:, 0, 0]) / 0.6
    centers = matrices @ np.array([80, 60, 1])  # (48, 48) in the frame, moved by up to 0.2 of 96 x 72
    moved = ~np.isclose(centers[:, :2], 48).all(axis=1)
    assert (matrices[:, 0, 0] < 0).mean() == pytest.approx(0.5, abs=0.03)
    assert (~np.isclose(zoom, 1)).mean() == pytest.approx(0.5, abs=0.03)
    assert moved.mean() == pytest.approx(0.5, abs=0.03)
    assert 0.6 <= zoom.min() < 0.61 and 1.39 < zoom.max() <= 1.4
    low, high = centers[:, :2].min(axis=0) - 48, centers[:, :2].max(axis=0) - 48
    assert high == pytest.approx([19.2, 14.4], abs=0.2) and low == pytest.approx([-19.2, -14.4], abs=0.2)
    assert (np.abs(low) <= [19.21, 14.41]).all() and (high <= [19.21, 14.41]).all()


@pytest.mark.parametrize("k", range(4))
def test_quarter_turns_move_points_and_pixels_alike(k):
    image = np.zeros((3, 5), np.uint8)
    image[0, 4] = 1  # its centre is the point (4.5, 0.5)
    turn = QuarterTurns(k, 3, 5)
    x, y = turn.apply_coords(np.array([[4.5, 0.5]]))[0]
    turned = turn.apply_image(image)
    assert turned.shape == ((3, 5) if k % 2 == 0 else (5, 3))
    assert turned[int(y), int(x)] == 1
