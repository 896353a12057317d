"""COCO json as a whole: categories, images, and the views that Detectron2 and pycocotools get of it."""

import pytest
from clq.data.datasets import register_coco_json
from clq.data.formats.coco import Content, check_content, check_images, read_coco_json, to_coco, to_records
from clq.data.formats.findings import Findings, shown
from clq.errors import UserError
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

BOX = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
IMAGE = {"id": 5, "file_name": "a.png", "width": 20, "height": 10}


@pytest.mark.parametrize(
    "image, message",
    [
        ("a.png", "image number 1 in its json is 'a.png' (text); it must be an object"),
        ({"id": 5, "file_name": "a.png"}, "image 5 lacks width; it needs id, file_name, width and height"),
        ({**IMAGE, "id": None}, "image number 1 in its json has id null"),
        ({**IMAGE, "file_name": 3}, "image 5 has file_name 3; it must be the path of a file"),
        ({**IMAGE, "file_name": "\udcff.png"}, "image 5 has file_name '\\udcff.png' (text), which UTF-8 cannot hold"),
        ({**IMAGE, "id": "\ud800"}, "image number 1 in its json has id '\\ud800' (text)"),
        ({**IMAGE, "file_name": ""}, "image 5 has file_name '' (text)"),
        ({**IMAGE, "file_name": "a\0.png"}, "image 5 has file_name 'a\\x00.png' (text)"),
        ({**IMAGE, "width": "20"}, "image 5 has width '20' (text); it must be a positive integer"),
        ({**IMAGE, "width": 0}, "image 5 has width 0"),
        ({**IMAGE, "height": -1}, "image 5 has height -1"),
        ({**IMAGE, "height": 10.5}, "image 5 has height 10.5"),
        ({**IMAGE, "height": float("nan")}, "image 5 has height NaN"),
        ({**IMAGE, "height": True}, "image 5 has height true"),
    ],
)
def test_a_wrong_description_of_an_image_is_named_or_left_out(image, message):
    other = {**IMAGE, "id": 6, "file_name": "b.png"}
    findings = Findings("pets", skip=True)
    assert check_images({"images": [image, other]}, findings) == [other]
    assert [(e.annotation, e.reason.startswith(message)) for e in findings.left_out] == [(None, True)]
    refused = Findings("pets")
    check_images({"images": [image, other]}, refused)
    with pytest.raises(UserError) as e:
        refused.raise_faults()
    assert str(e.value).startswith(f"data set pets: {message}")


@pytest.mark.parametrize(
    "images, message",
    [
        (None, 'no list under "images"'),
        ({}, 'no list under "images"'),
        ([], "lists no images"),
        ([IMAGE, IMAGE], "image id 5 occurs 2 times"),
        ([IMAGE, {**IMAGE, "id": "x"}], "some image ids in its json are numbers and some are text"),
    ],
)
def test_images_that_do_not_make_a_data_set_are_refused(images, message):
    with pytest.raises(UserError, match=message):
        check_images({"images": images}, Findings("pets", skip=True))


@pytest.mark.parametrize(
    "categories, message",
    [
        ([], "has no categories"),
        ("dog", "has no categories"),
        (["dog"], "category number 1 in its json is 'dog' .text.; it must have an id"),
        ([{"name": "dog"}], "category number 1"),
        ([{"id": None, "name": "dog"}], "category number 1"),
        ([{"id": 1}], "category 1 has name null in its json; it must be text"),
        ([{"id": 1, "name": "\ud800"}], r"category 1 has name '\\ud800' .text. in its json; it must be text"),
        ([{"id": 1, "name": 3}], "category 1 has name 3"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "category id 1 occurs 2 times"),
        ([{"id": 1, "name": "a"}, {"id": "2", "name": "b"}], "some category ids in its json are numbers"),
    ],
)
def test_categories_that_do_not_make_classes_are_refused(tmp_path, categories, message):
    import json

    path = tmp_path / "a.json"
    path.write_text(json.dumps({"categories": categories}))
    with pytest.raises(UserError, match=f"^data set pets: .*{message}"):
        read_coco_json(str(path), "pets")


def test_annotations_may_be_missing_but_not_be_something_else():
    data = {"categories": [{"id": 1, "name": "a"}], "images": [IMAGE]}
    assert check_content(data, Findings("pets"), masks=None).annotations is None
    for wrong in (None, {}, "x"):
        with pytest.raises(UserError, match='no list under "annotations"'):
            check_content({**data, "annotations": wrong}, Findings("pets"), masks=None)


def test_records_are_those_of_detectron2s_own_loader(make):
    images = [{**IMAGE, "id": 9, "file_name": "z.png"}, IMAGE]
    boxes = [{**BOX, "image_id": 9, "iscrowd": 1}, {**BOX, "id": 2, "category_id": 3, "bbox": [0.5, 1, 2, 3]}]
    entry = make("pets", images=images, annotations=boxes)
    theirs = load_coco_json(entry["json"], entry["images"], "theirs")
    data = read_coco_json(entry["json"], "pets")
    ours = to_records(check_content(data, Findings("pets"), masks=None), entry["images"])
    assert ours == theirs
    assert ours[0]["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS


def test_masks_are_loaded_where_they_are_used(make):
    from detectron2.data import DatasetCatalog

    polygon = [[1, 1, 5, 1, 5, 5]]
    entry = make("pets", annotations=[{**BOX, "segmentation": polygon}])
    for masks in ({}, {"other": "polygon"}, {"pets": "polygon"}):
        register_coco_json([entry], masks=masks)
        (record,) = DatasetCatalog.get("pets")
        assert record["annotations"][0].get("segmentation") == (polygon if "pets" in masks else None)


def test_categories_of_one_name_are_noted():
    data = {"categories": [{"id": i, "name": name} for i, name in enumerate(["dog", "cat", "dog"])], "images": [IMAGE]}
    findings = Findings("pets")
    assert check_content(data, findings, masks=None).class_names == ["dog", "cat", "dog"]
    ((kind, found),) = findings.notes.items()
    assert "categories have the same name" in kind and (found.first, found.count) == ("'dog' (text)", 2)


def test_pycocotools_gets_the_content():
    coco = to_coco(Content([{"id": 7, "name": "dog"}], [IMAGE], [BOX]))
    assert coco.getAnnIds(imgIds=[5]) == [1] and coco.getCatIds() == [7] and coco.loadAnns([1]) == [BOX]
    assert "annotations" not in to_coco(Content([{"id": 7, "name": "dog"}], [IMAGE], None)).dataset


@pytest.mark.parametrize(
    "value, text",
    [
        ("12", "'12' (text)"),
        (None, "null"),
        (False, "false"),
        (1.5, "1.5"),
        (float("-inf"), "-Infinity"),
        ([1], "[1] (a list)"),
        ({}, "{} (an object)"),
        ("x" * 100, "'" + "x" * 59 + "... (text)"),
        pytest.param(10**5000, "an integer of thousands of digits", id="digits"),
    ],
)
def test_values_are_shown_with_their_type(value, text):
    assert shown(value) == text
