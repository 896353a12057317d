import numpy as np
import pytest
import torch
from clq.inspection.suspicious import read_annotated
from clq.inspection.training_view import Targeting, training_views
from clq.modeling.assign.atss import match_atss
from detectron2.structures import Boxes, Instances

SMALL = [
    "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 32,
    "MODEL.CLQ.CONV_DIM", 32, "MODEL.CLQ.NUM_CONVS", 0, "MODEL.CLQ.NUM_CLASSES", 2, "MODEL.WEIGHTS", "",
    "INPUT.MIN_SIZE_TRAIN", (120,),
]  # fmt: skip


def sample(boxes, size):
    instances = Instances(size)
    instances.gt_boxes, instances.gt_classes = Boxes(torch.tensor(boxes)), torch.zeros(len(boxes), dtype=torch.int64)
    return {"image": torch.zeros(3, *size, dtype=torch.uint8), "instances": instances}


@pytest.mark.parametrize("opts", [[], ["MODEL.CLQ.ANCHOR_OFFSET", 0.5, "MODEL.CLQ.ANCHOR_SCALE", 5.0]])
def test_positives_are_those_of_match_atss(config, opts):
    cfg = config(*SMALL, *opts)
    boxes = [[10.0, 20, 60, 90], [70, 10, 150, 110], [40, 40, 55, 52]]
    found = Targeting(cfg)(sample(boxes, (120, 160)))
    offset, strides = cfg.MODEL.CLQ.ANCHOR_OFFSET, (8, 16, 32, 64, 128)
    grids = [(-(-128 // s), -(-160 // s)) for s in strides]
    idxs, _ = match_atss(
        grids, strides, torch.tensor(boxes), anchor_scale=cfg.MODEL.CLQ.ANCHOR_SCALE, center_offset=offset
    )
    expected, start = set(), 0
    for level, ((h, w), stride) in enumerate(zip(grids, strides, strict=True)):
        for cell in range(h * w):
            if idxs[start + cell] >= 0:
                x, y = (cell % w + offset) * stride, (cell // w + offset) * stride
                expected.add((x, y, level, int(idxs[start + cell])))
        start += h * w
    centers = found.centers.tolist()
    assert len(expected) > 10
    assert {(*c, lv, o) for c, lv, o in zip(centers, found.levels, found.objects, strict=True)} == expected


def test_the_first_location_of_a_level_belongs_to_it(config):
    """The box is as large as the anchors of p5, of which the four around its centre fit best: the first two columns."""
    cfg = config(*SMALL, "MODEL.CLQ.ANCHOR_OFFSET", 0.5, "MODEL.CLQ.ANCHOR_SCALE", 2.0)
    found = Targeting(cfg)(sample([[0.0, 0, 64, 64]], (120, 160)))
    positives = {(*center, level) for center, level in zip(found.centers.tolist(), found.levels, strict=True)}
    assert (16, 16, 2) in positives and (48, 48, 2) in positives


def test_an_image_without_objects_has_no_positives(config):
    instances = Instances((64, 64), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))
    found = Targeting(config(*SMALL))({"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "instances": instances})
    assert len(found.centers) == len(found.levels) == len(found.objects) == 0


@pytest.mark.parametrize("name", ["simota", "max_iou", "task"])
def test_other_assigners_have_positives_in_their_boxes(config, name):
    opts = ["MODEL.CLQ.ASSIGN.NAME", name]
    opts += ["MODEL.CLQ.BOX.WEIGHT_BY", "alignment_metric"] if name == "task" else []
    found = Targeting(config(*SMALL, *opts))(sample([[10.0, 10, 90, 90]], (120, 160)))
    assert len(found.centers) and set(found.objects) == {0}


def views(config, planted, seed=0, **kwargs):
    cfg = config(*SMALL, "DATASETS.COCO_JSON", [planted], "SEED", seed, "INPUT.AUG.SCALE", [0.5, 2.0])
    return list(training_views(cfg, read_annotated("planted"), [0, 3, 6], **kwargs))


def test_views_follow_from_the_seed(config, planted):
    first, again, other = (views(config, planted, seed) for seed in (0, 0, 1))
    assert [v.file_name.rsplit("/")[-1] for v in first] == ["1.png", "4.png", "7.png"]
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(one.image, two.image) and np.array_equal(one.boxes, two.boxes)
    assert any(one.image.shape != two.image.shape for one, two in zip(first, other, strict=True))


def test_without_augmentation_images_are_only_resized(config, planted):
    view = views(config, planted, augmented=False)[0]
    assert view.image.shape == (120, 160, 3) and view.positives is None
    assert view.boxes.tolist() == [[10, 10, 50, 50], [10, 11, 50, 51], [90, 60, 130, 90]]
    assert view.classes.tolist() == [0, 0, 1]


def test_images_are_rgb_in_any_format(config, planted):
    rgb = views(config, planted, augmented=False)[0].image
    cfg = config(*SMALL, "DATASETS.COCO_JSON", [planted], "SEED", 0, "INPUT.FORMAT", "BGR")
    [view] = training_views(cfg, read_annotated("planted"), [0], augmented=False)
    assert np.array_equal(view.image, rgb)
