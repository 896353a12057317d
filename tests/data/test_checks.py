"""Each kind of fault in a data set is reported before it is used; the policy says whether it is left out."""

import json
import os
import shutil

import pytest
from clq.config import setup_cfg
from clq.data.checks import check_datasets
from clq.data.left_out import left_out_images
from clq.data.loader import build_train_loader
from clq.errors import UserError
from PIL import Image

BOX = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
IMAGE = {"id": 5, "file_name": "a.png", "width": 20, "height": 10}


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "clq.data.formats.findings"]


def check(train, test, splits=("TRAIN", "TEST"), opts=()):
    """Checks data sets that are given as entries of DATASETS.COCO_JSON or as names."""
    entries = [entry for entry in (*train, *test) if isinstance(entry, dict)]
    names = [tuple(e["name"] if isinstance(e, dict) else e for e in part) for part in (train, test)]
    cfg = setup_cfg(
        None,
        ["DATASETS.COCO_JSON", repr(entries), "DATASETS.TRAIN", repr(names[0]), "DATASETS.TEST", repr(names[1]), *opts],
    )
    return check_datasets(cfg, splits)


SKIP = ("DATASETS.ON_ERROR", "skip")


def test_a_good_pair_passes_silently(make, caplog):
    assert check([make("train")], [make("val")]) == []
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": None}, 'has no list under "images"'),
        ({"annotations": None}, 'has no list under "annotations"'),
        ({"annotations": [{**BOX, "bbox": [1, 2, 3]}]}, r"annotation 1 has bbox \[1, 2, 3\]"),
        ({"images": [{**IMAGE, "width": "20"}]}, "image 5 has width '20'"),
        ({"images": [{**IMAGE, "width": 21}]}, r"is 20 x 10 pixels .*, but has width and height 21 x 10 in its json"),
        ({"images": [{**IMAGE, "width": 10, "height": 20}]}, "is 20 x 10 pixels"),
        ({"images": [{**IMAGE, "file_name": "b.png"}]}, "train_images/b.png does not exist; file_name in the json is"),
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
    "change", [{"iscrowd": "0"}, {"bbox": ["1", 2, 3, 4]}, {"area": "x"}, {"image_id": "5"}, {"category_id": 9}]
)
def test_faults_of_a_test_set_are_refused_before_training(make, change):
    with pytest.raises(UserError, match=r"^data set val: annotation 1 has "):
        check([make("train")], [make("val", annotations=[{**BOX, **change}])])


def test_every_file_is_looked_at(make, tmp_path):
    images = [{**IMAGE, "id": i, "file_name": f"{i}.png"} for i in range(100)]
    entry = make("train", images=images, annotations=[{**BOX, "image_id": i, "id": i + 1} for i in range(100)])
    for i in range(100):
        shutil.copy(tmp_path / "train_images" / "a.png", tmp_path / "train_images" / f"{i}.png")
    check([entry], [])
    path = tmp_path / "train_images" / "37.png"
    for damage, message in (
        (lambda: path.write_bytes(path.read_bytes()[:20]), "37.png is cut off"),
        (lambda: Image.new("RGB", (10, 20)).save(path), "37.png is 10 x 20 pixels"),
        (path.unlink, "37.png does not exist"),
    ):
        damage()
        with pytest.raises(UserError, match=message):
            check([entry], [])


@pytest.mark.parametrize(
    "on_disk, in_json, message",
    [
        ("b.JPG", "b.jpg", r"b\.jpg does not exist, but .*/train_images/b\.JPG does; correct file_name"),
        ("sub/b.png", "sub\\b.png", r"does not exist, but would with / in place of each \\; correct"),
        ("Zo\u00eb.png", "Zoe\u0308.png", r"does not exist, but a file .* in another Unicode form \(NFC or NFD\) does"),
        (
            "b.png",
            "images/b.png",
            r"does not exist, but .*/train_images/b\.png does; correct file_name in the json, or",
        ),
        ("b.png", "C:\\me\\b.png", r"does not exist, but .*/train_images/b\.png does; correct file_name"),
        ("b.png", "c.png", r"c\.png does not exist; file_name in the json is relative to the image folder\. Correct"),
    ],
)
def test_a_file_of_a_similar_name_is_named(make, tmp_path, on_disk, in_json, message):
    entry = make("train", images=[{**IMAGE, "file_name": in_json}])
    path = tmp_path / "train_images" / on_disk
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "train_images" / "a.png").rename(path)
    with pytest.raises(UserError, match=message):
        check([entry], [])


def test_a_size_that_ignores_the_orientation_is_explained(make, tmp_path):
    path, exif = tmp_path / "train_images" / "a.png", Image.Exif()
    entry = make("train")
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    with pytest.raises(UserError, match=r"is 10 x 20 pixels .* 20 x 10 in its json, as if its EXIF orientation had"):
        check([entry], [])


def test_a_file_that_is_listed_twice_is_left_out_only_where_its_size_is_wrong(make, tmp_path):
    images = [IMAGE, {**IMAGE, "id": 6, "width": 19}]
    boxes = [BOX, {**BOX, "id": 2, "image_id": 6}]
    (entry,) = check([make("train", images=images, annotations=boxes)], [], opts=SKIP)
    path = str(tmp_path / "train_images" / "a.png")
    assert entry.image == path and "19 x 10 in its json" in entry.reason
    assert left_out_images("train") == {(path, 6)}
    cfg = setup_cfg(None, ["DATASETS.TRAIN", "('train',)", "SOLVER.IMS_PER_BATCH", "1"])
    batch = next(iter(build_train_loader(cfg, lambda record: record)))
    assert [(r["image_id"], len(r["annotations"])) for r in batch] == [(5, 1)]


def test_a_missing_link_and_a_folder_are_no_images(make, tmp_path):
    folder = tmp_path / "train_images"
    entry = make("train", images=[{**IMAGE, "file_name": "b.png"}])
    os.symlink(folder / "nowhere.png", folder / "b.png")
    with pytest.raises(UserError, match=r"b\.png cannot be opened \(No such file"):
        check([entry], [])
    (folder / "b.png").unlink()
    (folder / "b.png").mkdir()
    with pytest.raises(UserError, match=r"image .*b\.png "):
        check([entry], [])


def test_what_is_faulty_is_left_out_counted_and_returned(make, tmp_path, caplog):
    images = [IMAGE, *({**IMAGE, "id": i, "file_name": f"{i}.png"} for i in (6, 7)), {**IMAGE, "id": 8, "width": 0}]
    boxes = [BOX, {**BOX, "id": 2, "iscrowd": "0"}, {**BOX, "id": 3, "image_id": 6}, {**BOX, "id": 4, "iscrowd": "1"}]
    entry = make("train", images=images, annotations=boxes)
    Image.new("RGB", (20, 11)).save(tmp_path / "train_images" / "7.png")
    left_out = check([entry], [make("val")], opts=SKIP)
    root = tmp_path / "train_images"
    assert [(e.data_set, e.image, e.annotation) for e in left_out] == [
        ("train", str(root / "a.png"), None),  # image 8
        ("train", str(root / "a.png"), 2),
        ("train", str(root / "a.png"), 4),
        ("train", str(root / "6.png"), None),  # does not exist
        ("train", str(root / "7.png"), None),  # has another size
    ]
    assert left_out_images("train") == {(str(root / "6.png"), 6), (str(root / "7.png"), 7)}
    assert [w.split(": ")[2].split(" (")[0] for w in warnings(caplog)] == [
        "images have a wrong description",
        "annotations have a wrong iscrowd",
        "files do not exist",
        "files have another size than their json says",
    ]
    assert "(2; the first: annotation 2 has iscrowd '0' (text)" in warnings(caplog)[1]


def test_a_name_with_a_line_break_stays_in_the_line_of_its_warning(make, caplog):
    check([make("train", images=[IMAGE, {**IMAGE, "id": 6, "file_name": "b\n\ud7ff.png"}])], [], opts=SKIP)
    (warning,) = warnings(caplog)
    assert r"train_images/b\n\ud7ff.png does not exist" in warning and "\n" not in warning


def test_if_nothing_is_left_the_reason_is_given(make):
    bad = make("train", annotations=[{**BOX, "bbox": ["1", 2, 3, 4]}])
    with pytest.raises(UserError, match=r"has a box to train on; add some. Left out: .*annotation 1 has bbox\[0\] '1'"):
        check([bad], [], opts=SKIP)
    gone = make("train", images=[{**IMAGE, "file_name": "b.png"}])
    with pytest.raises(UserError, match=r"none of its images can be used.* Left out: .*b\.png does not exist"):
        check([gone], [], opts=SKIP)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"annotations": None}, "its json has no annotations; detections are written to a file"),
        ({"annotations": []}, "it has no object to find"),
        ({"annotations": [{**BOX, "iscrowd": 1}]}, "it has no object to find"),
    ],
)
def test_a_test_set_without_anything_to_find_causes_a_warning(make, caplog, changes, message):
    check([make("train")], [make("val", **changes)])
    (warning,) = warnings(caplog)
    assert warning.startswith(f"data set val: {message}")


def test_warnings_give_the_number_and_the_first_annotation(make, caplog):
    boxes = [BOX, *({**BOX, "id": i, "bbox": [10, 2, 20, 4]} for i in (4, 5)), {**BOX, "id": 6, "iscrowd": None}]
    check([make("train", annotations=boxes)], [make("val")])
    assert [w.split("data set train: ")[1] for w in warnings(caplog)] == [
        "annotations have no iscrowd, which is read as 0 (1; the first: annotation 6, where it is null)",
        "boxes extend beyond their image by more than 1 px (bbox is [x, y, width, height]) "
        "(2; the first: annotation 4 with bbox [10, 2, 20, 4])",
    ]


def test_more_objects_than_detections_per_image_cause_a_warning(make, caplog):
    crowded = make("val", annotations=[{**BOX, "id": i} for i in range(1, 4)])
    check([make("train")], [crowded], opts=["TEST.DETECTIONS_PER_IMAGE", "3"])
    assert warnings(caplog) == []
    check([make("train")], [crowded], opts=["TEST.DETECTIONS_PER_IMAGE", "2"])
    (warning,) = warnings(caplog)
    assert "val: images have more objects than TEST.DETECTIONS_PER_IMAGE 2" in warning and "image 5 has 3" in warning


def test_test_images_that_are_training_images_cause_a_warning(make, tmp_path, caplog):
    train, val = make("train"), make("val")
    shutil.copy(tmp_path / "train_images" / "a.png", tmp_path / "val_images" / "a.png")
    check([train], [val])
    (warning,) = warnings(caplog)
    assert warning.startswith("data set val: test images are training images, too")
    assert f"{tmp_path}/val_images/a.png is {tmp_path}/train_images/a.png" in warning


def test_files_that_are_listed_twice_cause_a_warning(make, caplog):
    check([make("train", images=[IMAGE, {**IMAGE, "id": 6}])], [])
    (warning,) = warnings(caplog)
    assert "files are listed more than once" in warning


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
    with pytest.raises(UserError, match=r"DATASETS\.ON_ERROR ignore: must be one of error, skip"):
        check([make("train")], [], opts=["DATASETS.ON_ERROR", "ignore"])


def test_missing_files_of_detectron2s_own_data_sets_are_named(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"coco_2017_val: its json .*instances_val2017.json does not exist.*DETECTRON2_"
    ):
        check([], ["coco_2017_val"], splits=("TEST",))


def test_the_images_of_data_sets_that_were_registered_in_code_are_checked(make, tmp_path):
    from detectron2.data.datasets import register_coco_instances

    entry = make("by_code", annotations=[{**BOX, "bbox": "left to the code that reads it"}])
    register_coco_instances("by_code", {}, entry["json"], entry["images"])
    check(["by_code"], [])
    (tmp_path / "by_code_images" / "a.png").unlink()
    with pytest.raises(UserError, match=r"data set by_code: image .*a\.png does not exist"):
        check(["by_code"], [])


@pytest.mark.parametrize("content", ["[" * 100_000, '{"categories": ' + "9" * 5000 + "}", "\ufeff", "<annotation/>"])
def test_files_that_are_no_json_are_refused_in_one_line(make, tmp_path, content):
    entry = make("train")
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(UserError) as e:
        check([entry], [])
    assert str(e.value).startswith("data set train: ") and "\n" not in str(e.value)


def test_a_json_with_nan_is_read_and_the_field_is_named(make, tmp_path):
    entry = make("train", annotations=[{**BOX, "bbox": [1, 2, float("nan"), 4]}])
    assert "NaN" in (tmp_path / "train.json").read_text() and json.loads((tmp_path / "train.json").read_text())
    with pytest.raises(UserError, match=r"annotation 1 has bbox\[2\] NaN; it must be a finite number"):
        check([entry], [])
