"""How MMDetection's config in a checkpoint selects detections, as our keys."""

import pytest
from clq.errors import UserError
from mmdet_texts import AS_PUBLISHED, changed, check, config_text

SELECTION = {
    "score_thr=0.05": ("score_thr=0.3", "MODEL.CLQ.SCORE_THRESH", 0.3),
    "iou_threshold=0.6": ("iou_threshold=0.5", "MODEL.CLQ.NMS_THRESH", 0.5),
    "iou_threshold=0.6)": ("iou_thr=0.7)", "MODEL.CLQ.NMS_THRESH", 0.7),
    "nms_pre=1000": ("nms_pre=300", "MODEL.CLQ.TOPK_CANDIDATES", 300),
    "nms_pre=1000, ": ("", "MODEL.CLQ.TOPK_CANDIDATES", 1_000_000_000),  # MMDetection's default: all
    "max_per_img=100": ("max_per_img=300", "TEST.DETECTIONS_PER_IMAGE", 300),
    "max_per_img=100)": ("max_per_img=-1)", "TEST.DETECTIONS_PER_IMAGE", 1_000_000_000),
}


@pytest.mark.parametrize("before", SELECTION)
def test_how_detections_are_selected_becomes_keys(before):
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
        ("keep_ratio=True", "keep_ratio=False", "keep_ratio = False"),
    ],
)
def test_other_ways_to_select_are_refused(before, after, why):
    with pytest.raises(UserError, match=f"a.pth: its config tests with {why}.*, which this project does not have"):
        check(changed(config_text("GFLHead"), {before: after}))
