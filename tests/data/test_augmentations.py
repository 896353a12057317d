"""The augmentations that the config keys stand for, and the values that are refused."""

import pytest
from clq.data.augmentations import build_augmentations, build_test_augmentations
from clq.data.colors import RandomColor, RandomFloatColor
from clq.data.transforms import Letterbox
from clq.errors import UserError
from painted import LETTERBOX, config


def test_zoom_and_crop_replace_the_resizing():
    """What crops, flips and turns comes before it; colours change after it, where there are the fewest pixels."""
    every = {"CROP": [50, 60], "SCALE": [0.6, 1.4], "ROTATE90": True, "COLOR": 0.2, "BRIGHTNESS": 0.2}
    augmentations = build_augmentations(config("INPUT.CROP.ENABLED", True, flip="horizontal", **every))
    names = [type(a).__name__ for a in augmentations]
    own = ["RandomQuarterTurns", "RandomZoomCrop", "RandomColor", "RandomFloatColor"]
    assert names == ["RandomCrop", "RandomFlip", *own]
    (zoom,) = build_augmentations(config(SCALE=[0.6, 1.4], SCALE_SAMPLING="uniform", SCALE_PROB=0.5))
    assert (zoom.zoom.scale, zoom.zoom.sampling, zoom.zoom.prob, zoom.size) == ((0.6, 1.4), "uniform", 0.5, None)


@pytest.mark.parametrize(
    "aug, message",
    [
        ({"COLOR": 1.5}, "COLOR 1.5: must be between 0"),
        ({"SCALE": [2.0, 0.5]}, r"SCALE \[2.0, 0.5\]: must be \[lowest, highest\]"),
        ({"SCALE": [0.0, 1.0]}, r"SCALE .* between 0\.001 and 1000"),
        ({"SCALE": [1.0, "inf"]}, r"SCALE .* between 0\.001 and 1000"),
        ({"SCALE": [1e-300, 1.0]}, r"SCALE .* between 0\.001 and 1000"),
        ({"CONTRAST": [0.0, "a"]}, r"CONTRAST .* finite numbers that are at least 0"),
        ({"SCALE_SAMPLING": "linear"}, "SCALE_SAMPLING linear: must be one of log, uniform"),
        ({"SCALE_PROB": 1.5}, "SCALE_PROB 1.5: must be between 0 and 1"),
        ({"SHIFT_PROB": -0.5}, "SHIFT_PROB -0.5: must be between 0 and 1"),
        ({"SHIFT": 0.2}, r"SHIFT 0\.2: needs INPUT\.LETTERBOX\.ENABLED True"),
        ({"CROP": [100]}, r"CROP \[100\]: must be \[height, width\]"),
        ({"CROP": [100, 0.5]}, r"CROP .* must be \[height, width\], integers that"),
        ({"MIN_VISIBLE": 1.1}, "MIN_VISIBLE 1.1: must be between 0 and 1"),
        ({"BRIGHTNESS": -0.1}, r"BRIGHTNESS -0.1: must be between 0 and 1"),
        ({"CONTRAST": [1.0]}, r"CONTRAST \[1\.0\]: must be \[lowest, highest\]"),
        ({"SATURATION": [-0.5, 1.0]}, r"SATURATION .* at least 0"),
        ({"COLOR_PROB": 2.0}, "COLOR_PROB 2.0: must be between 0 and 1"),
    ],
)
def test_values_out_of_range_are_refused(aug, message):
    with pytest.raises(UserError, match=rf"INPUT\.AUG\.{message}"):
        build_augmentations(config(**aug))


@pytest.mark.parametrize("aug", [{"COLOR": 0.3}, {"SATURATION": [0.5, 1.2]}], ids=str)
def test_colour_and_saturation_need_three_channels(aug):
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
        (["INPUT.LETTERBOX.SIZE", [320]], r"LETTERBOX\.SIZE \[320\]: must be \[height, width\], integers that"),
        (["INPUT.LETTERBOX.SIZE", [320, 0]], r"LETTERBOX\.SIZE \[320, 0\]: must be"),
        (["INPUT.LETTERBOX.SIZE", [320.5, 320]], r"LETTERBOX\.SIZE \[320\.5, 320\]: must be"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], r"LETTERBOX\.ENABLED True: RetinaNet models do not support it"),
        (["TEST.AUG.ENABLED", True], r"cannot be combined with TEST\.AUG\.ENABLED; unset one of the two"),
        (["INPUT.CROP.ENABLED", True], r"cannot be combined with INPUT\.CROP\.ENABLED"),
        (["INPUT.AUG.CROP", [80, 80]], r"cannot be combined with INPUT\.AUG\.CROP"),
        (["INPUT.AUG.ROTATE90", True], r"cannot be combined with INPUT\.AUG\.ROTATE90"),
        (["INPUT.AUG.FLIP_VERTICAL", True], r"cannot be combined with INPUT\.AUG\.FLIP_VERTICAL"),
        (
            ["INPUT.RANDOM_FLIP", "vertical"],
            r"RANDOM_FLIP vertical: .* it must be horizontal or none",
        ),
        (
            ["INPUT.RANDOM_FLIP", "Horizontal"],
            r"RANDOM_FLIP Horizontal: with INPUT\.LETTERBOX it must be horizontal or none",
        ),
        (["INPUT.AUG.SHIFT", 0.6], r"INPUT\.AUG\.SHIFT 0\.6: must be between 0 and 0\.5"),
    ],
)
def test_keys_that_conflict_with_a_letterbox_are_refused(opts, message):
    with pytest.raises(UserError, match=message):
        build_augmentations(config(*LETTERBOX, *opts))


def test_a_letterbox_replaces_the_resizing_in_training_and_testing():
    cfg = config(*LETTERBOX, "INPUT.MIN_SIZE_TEST", 800, SCALE=[0.6, 1.4], SHIFT=0.2, BRIGHTNESS=0.2, COLOR=0.1)
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    letterbox, *colors = build_augmentations(cfg)
    assert [type(c) for c in colors] == [RandomColor, RandomFloatColor]
    assert (letterbox.size, letterbox.zoom.scale) == ((80, 80), (0.6, 1.4))
    assert (letterbox.flip_prob, letterbox.shift, letterbox.shift_prob) == (0.5, 0.2, 1.0)
    (test,) = build_test_augmentations(cfg)
    assert type(test) is Letterbox
    assert (test.zoom.scale, test.flip_prob, test.shift) == ((1.0, 1.0), 0.0, 0.0)
