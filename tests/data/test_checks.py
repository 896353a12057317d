"""Each kind of fault in a data set is reported to the user."""

import pytest
from clq.config import setup_cfg
from clq.data.checks import check_datasets
from clq.errors import UserError

BOX = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
IMAGE = {"id": 5, "file_name": "a.png", "width": 20, "height": 10}


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "clq.data.checks"]


def check(train, test, splits=("TRAIN", "TEST"), opts=()):
    """Checks data sets that are given as entries of DATASETS.COCO_JSON or as names."""
    entries = [entry for entry in (*train, *test) if isinstance(entry, dict)]
    names = [tuple(e["name"] if isinstance(e, dict) else e for e in part) for part in (train, test)]
    cfg = setup_cfg(
        None,
        ["DATASETS.COCO_JSON", repr(entries), "DATASETS.TRAIN", repr(names[0]), "DATASETS.TEST", repr(names[1]), *opts],
    )
    check_datasets(cfg, splits)


def test_a_good_pair_passes_silently(make, caplog):
    check([make("train")], [make("val")])
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": None}, 'has no list under "images"'),
        ({"annotations": None}, 'has no list under "annotations"'),
        ({"images": []}, "lists no image"),
        ({"images": [{**IMAGE, "width": "20"}]}, "image 5 has width '20'"),
        ({"images": [{**IMAGE, "file_name": None}]}, "image 5 has file_name None"),
        ({"images": [IMAGE, {**IMAGE, "id": "x"}]}, "some image ids in its json are numbers and some are text"),
        ({"annotations": [{**BOX, "category_id": [7]}]}, r"annotation 1 has category_id \[7\]"),
        ({"annotations": [{**BOX, "segmentation": [[1, 1, 2, 2]]}]}, "has a box to train on"),
        ({"images": [IMAGE, IMAGE]}, "image id 5 occurs 2 times"),
        ({"images": [{**IMAGE, "file_name": "b.png"}]}, "images/b.png does not exist"),
        ({"images": [{"id": 5, "file_name": "a.png"}]}, "image number 1 in its json lacks one of id, file_name, width"),
        ({"categories": ((7, "a"), (7, "b"))}, "category id 7 occurs 2 times"),
        ({"annotations": [BOX, BOX]}, "annotation id 1 occurs 2 times"),
        (
            {"annotations": [{**BOX, "category_id": 8}]},
            "annotation 1 has category_id 8, which is not the id",
        ),
        ({"annotations": [{**BOX, "ignore": 1}]}, 'annotation 1 has "ignore"'),
        ({"annotations": [{**BOX, "bbox": [1, 2, 3]}]}, r"annotation 1 has bbox \[1, 2, 3\]; it must be \[x, y, width"),
        ({"annotations": [{**BOX, "bbox": [1, 2, 3, "x"]}]}, "a bbox in its json does not consist of numbers"),
        ({"annotations": [BOX, {**BOX, "id": 9, "bbox": [1, 2, 3, float("nan")]}]}, "annotation 9 has bbox .*nan"),
        ({"annotations": [{"id": 1, "image_id": 5, "category_id": 7}]}, "annotation number 1 .* lacks one of .*bbox"),
        ({"annotations": []}, "none of its 1 images has a box to train on"),
        ({"annotations": [{**BOX, "bbox": [1, 2, 0, 4]}]}, "none of its 1 images has a box to train on"),
        ({"annotations": [{**BOX, "iscrowd": 1}]}, "none of its 1 images has a box to train on"),
        ({"annotations": [{**BOX, "image_id": 6}]}, "none of its 1 images has a box to train on"),
    ],
)
def test_faults_of_a_training_set_are_refused(make, changes, message):
    with pytest.raises(UserError, match=f"^data set train: .*{message}") as e:
        check([make("train", **changes)], [make("val")])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "annotation, message",
    [
        ({k: v for k, v in BOX.items() if k != "area"}, 'annotation 1 has no number under "area"'),
        ({**BOX, "area": None}, 'annotation 1 has no number under "area"'),
        ({k: v for k, v in BOX.items() if k != "iscrowd"}, 'annotation 1 has no number under "iscrowd"'),
        ({**BOX, "id": "a1"}, "annotation id 'a1' is text"),
        ({**BOX, "id": 0}, "never counts annotation id 0 as found"),
    ],
)
def test_what_only_evaluation_needs_is_required_of_test_sets_only(make, annotation, message):
    odd = make("odd", annotations=[annotation])
    check([odd], [make("val")])
    with pytest.raises(UserError, match=message):
        check([make("train")], [odd])


def test_warnings_about_boxes_give_their_number_and_the_first_id(make, caplog):
    boxes = [
        BOX,
        {**BOX, "id": 2, "bbox": [1, 2, 0, 4]},
        {**BOX, "id": 3, "bbox": [5, 2, -2, 4]},
        {**BOX, "id": 4, "bbox": [10, 2, 20, 4]},  # ends at 30 of 20 columns, as if it were x, y, x2, y2
        {**BOX, "id": 5, "image_id": 77},
    ]
    check([make("train", annotations=boxes)], [make("val")])
    assert [(m.split(": ")[1].split(" box")[0], m.rsplit(" ", 1)[1]) for m in warnings(caplog)] == [
        ("1", "5"),  # belongs to no listed image
        ("2", "2"),  # has no area
        ("1", "4"),  # extends beyond the image
    ]


def test_more_objects_than_detections_per_image_cause_a_warning(make, caplog):
    crowded = make("val", annotations=[{**BOX, "id": i} for i in range(1, 4)])
    check([make("train")], [crowded], opts=["TEST.DETECTIONS_PER_IMAGE", "3"])
    assert warnings(caplog) == []
    check([make("train")], [crowded], opts=["TEST.DETECTIONS_PER_IMAGE", "2"])
    (warning,) = warnings(caplog)
    assert "val: image 5 has 3 objects, but TEST.DETECTIONS_PER_IMAGE is 2" in warning


def test_classes_must_agree_by_name_and_order_not_by_id(make):
    train = make("train")  # cat 3, dog 7
    check([train], [make("same", categories=((20, "dog"), (10, "cat")))])
    with pytest.raises(UserError, match=r"train \(2 classes\) and swapped \(2\).*: their order differs"):
        check([train], [make("swapped", categories=((1, "dog"), (2, "cat")))])
    with pytest.raises(UserError, match=r"train \(2 classes\) and more \(3\).*: emu is in only one of them"):
        check([train], [make("more", categories=((7, "dog"), (3, "cat"), (9, "emu")))])


def test_without_training_sets_the_number_of_classes_must_be_the_detectors(make):
    detector = ["MODEL.META_ARCHITECTURE", "CLQ", "MODEL.CLQ.NUM_CLASSES", 2]
    check([], [make("two")], splits=("TEST",), opts=detector)
    with pytest.raises(UserError, match=r"^data set three has 3 classes, but the detector has 2"):
        check([], [make("three", categories=((7, "a"), (3, "b"), (9, "c")))], splits=("TEST",), opts=detector)


def test_empty_splits_and_unknown_data_sets_are_refused(make):
    with pytest.raises(UserError, match=r"DATASETS\.TEST is empty"):
        check([make("train")], [], splits=("TEST",))
    check([make("train")], [])  # training works without evaluation
    with pytest.raises(UserError, match=r"DATASETS\.TRAIN is empty"):
        check([], [make("val")])
    with pytest.raises(UserError, match="no data set nowhere"):
        check([make("train")], ["nowhere"])


def test_missing_files_of_detectron2s_own_data_sets_are_named(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"coco_2017_val: its json .*instances_val2017.json does not exist.*DETECTRON2_"
    ):
        check([], ["coco_2017_val"], splits=("TEST",))
