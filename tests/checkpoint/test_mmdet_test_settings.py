"""The test settings of MMDetection's config, as keys of this project."""

import pytest
from clq.errors import UserError
from mmdet_texts import AS_PUBLISHED, changed, check, config_text

SIZE = "img_scale=(1333, 800)"
RESIZE = "flip=False, transforms=[\n            dict(type='Resize', "
SELECTION = {
    "score_thr=0.05,": ("score_thr=-1,", "MODEL.CLQ.SCORE_THRESH", -1.0),  # keeps every score
    "score_thr=0.05": ("score_thr=0.3", "MODEL.CLQ.SCORE_THRESH", 0.3),
    "iou_threshold=0.6": ("iou_threshold=0.5", "MODEL.CLQ.NMS_THRESH", 0.5),
    "iou_threshold=0.6)": ("iou_thr=0.7)", "MODEL.CLQ.NMS_THRESH", 0.7),
    "nms_pre=1000": ("nms_pre=300", "MODEL.CLQ.TOPK_CANDIDATES", 300),
    "nms_pre=1000, ": ("", "MODEL.CLQ.TOPK_CANDIDATES", 1_000_000_000),  # the default keeps all
    "max_per_img=100": ("max_per_img=300", "TEST.DETECTIONS_PER_IMAGE", 300),
    "max_per_img=100)": ("max_per_img=-1)", "TEST.DETECTIONS_PER_IMAGE", 1_000_000_000),
}


@pytest.mark.parametrize("before", SELECTION)
def test_the_selection_of_detections_becomes_keys(before):
    after, key, value = SELECTION[before]
    assert check(changed(config_text("GFLHead"), {before: after})) == {**AS_PUBLISHED, key: value}


@pytest.mark.parametrize("version, before", [("2.x", "img_scale=(1333, 800)"), ("3.x", "scale=(1333, 800)")])
def test_the_size_of_test_images_becomes_keys(version, before):
    keys = check(changed(config_text("GFLHead", version=version), {before: before.replace("1333, 800", "640, 480")}))
    assert keys == {**AS_PUBLISHED, "INPUT.MIN_SIZE_TEST": 480, "INPUT.MAX_SIZE_TEST": 640}


@pytest.mark.parametrize(
    "before, after, why",
    [
        ("type='nms'", "type='soft_nms'", "nms = {'type': 'soft_nms'"),
        ("type='nms'", "type='nms', class_agnostic=True", "nms = .*'class_agnostic': True"),
        ("type='nms'", "type='nms', score_threshold=0.2", "nms = .*'score_threshold': 0.2"),
        ("iou_threshold=0.6", "iou_threshold=None", "nms.iou_threshold = None"),
        ("nms_pre=1000", "nms_pre=inf", "nms_pre = inf"),
        ("min_bbox_size=0", "min_bbox_size=8", "min_bbox_size = 8"),
        ("score_thr=0.05", "score_thr=min(a, b)", r"score_thr = min\(a, b\)"),
        ("nms_pre=1000", "nms_pre=0.5", "nms_pre = 0.5"),
        ("test_cfg=dict(", "test_cfg=build(", r"test_cfg = build\("),
        ("keep_ratio=True", "keep_ratio=False", "keep_ratio = False"),
        (f"{SIZE}, {RESIZE}keep_ratio=True", f"img_scale=[(640, 480)], {RESIZE}keep_ratio=False", "keep_ratio = False"),
        (SIZE, "img_scale=(1333, 800, 3)", r"img_scale = \[1333, 800, 3\]"),
        (SIZE, "img_scale=(0, 800)", r"img_scale = \[0, 800\]"),
        (SIZE, "img_scale=[]", r"img_scale = \[\]"),
        (SIZE, "img_scale='large'", "img_scale = 'large'"),
        (SIZE, "img_scale=size()", r"img_scale = size\(\)"),
        (SIZE, "scale_factor=1.0", "scale_factor = 1.0"),
        ("dict(type='LoadImageFromFile')", "load()", r"a step = load\(\)"),
        ("test=dict(", "test=of(", r"a step = of\("),
    ],
)
def test_a_selection_that_this_project_does_not_have_is_refused(before, after, why):
    with pytest.raises(UserError, match=f"a.pth: its config tests with {why}.*, which this project does not support"):
        check(changed(config_text("GFLHead"), {before: after}))


@pytest.mark.parametrize(
    "before, after, why",
    [
        ("score_thr=0.05", "score_thr=1.5", "score_thr = 1.5, which must be below 1"),
        ("iou_threshold=0.6", "iou_threshold=-0.5", "nms.iou_threshold = -0.5, which must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused(before, after, why):
    with pytest.raises(UserError, match=f"a.pth: its config tests with {why}; correct it in the config in its meta"):
        check(changed(config_text("GFLHead"), {before: after}))


# Version, a part of the text, the part that replaces it, and the short and long sides that it stands for.
SIZES = [
    ("2.x", SIZE, "img_scale=[(640, 480)]", 480, 640),
    ("3.x", "scale=(1333, 800), type='Resize'", "scale=[(640, 480)], type='mmdet.Resize'", 480, 640),
    ("3.x", "scale=(1333, 800)", "scale=640", 640, 640),
    ("3.x", "scale=(1333, 800), type='Resize'", "scale=480, max_size=640, type='ResizeShortestEdge'", 480, 640),
    (
        "3.x",
        "keep_ratio=True, scale=(1333, 800), type='Resize'",
        "scale=480, max_size=640, type='ResizeShortestEdge'",
        480,
        640,
    ),
]


@pytest.mark.parametrize("version, before, after, short, long", SIZES)
def test_other_ways_to_write_the_size_are_read(version, before, after, short, long, caplog):
    keys = check(changed(config_text("GFLHead", version=version), {before: after}))
    assert keys == {**AS_PUBLISHED, "INPUT.MIN_SIZE_TEST": short, "INPUT.MAX_SIZE_TEST": long}
    assert not caplog.records


def test_3x_does_not_keep_the_ratio_by_default():
    with pytest.raises(UserError, match=r"keep_ratio = False"):
        check(changed(config_text("GFLHead", version="3.x"), {"keep_ratio=True, ": ""}))
    with pytest.raises(UserError, match=r"scale_factor = 0.5"):
        check(changed(config_text("GFLHead", version="3.x"), {"scale=(1333, 800)": "scale_factor=0.5"}))


@pytest.mark.parametrize(
    "before, after, why",
    [
        ("flip=False", "flip=True", "flip = True"),
        (SIZE, "img_scale=[(1333, 800), (1600, 1000)]", "img_scale = [[1333, 800], [1600, 1000]]"),
        ("type='MultiScaleFlipAug'", "type='TestTimeAug'", "TestTimeAug"),
    ],
)
def test_a_test_with_augmentation_causes_a_warning(before, after, why, caplog):
    assert check(changed(config_text("GFLHead"), {before: after})) == AS_PUBLISHED
    assert f"a.pth: its config tests with test-time augmentation ({why})" in caplog.text
