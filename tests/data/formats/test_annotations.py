"""Which annotations of a COCO json are used, what is reported of the others, and what is read as something else."""

import copy
import json

import pytest
from clq.data.formats.annotations import _Check
from clq.data.formats.coco import check_content
from clq.data.formats.findings import Findings
from clq.errors import UserError
from hypothesis import given, settings
from hypothesis import strategies as st

BOX = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
IMAGE = {"id": 5, "file_name": "a.png", "width": 20, "height": 10}
DATA = {"categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}], "images": [IMAGE]}


def check(*annotations, skip=False, masks=None, **data):
    """The content with these annotations, and what was found in it."""
    findings = Findings("pets", skip)
    content = check_content({**DATA, "annotations": list(annotations), **data}, findings, masks=masks)
    return content, findings


def without(key):
    return {k: v for k, v in BOX.items() if k != key}


def test_good_annotations_are_used_as_they_are_without_fields_that_nothing_reads():
    boxes = [{**BOX, "segmentation": "nonsense", "keypoints": 3}, {**BOX, "id": 2, "iscrowd": 1, "area": 0.5}]
    content, findings = check(*copy.deepcopy(boxes))
    assert content.annotations == [BOX, {**BOX, "id": 2, "iscrowd": 1, "area": 0.5}]
    assert not findings.faults and not findings.notes and not findings.left_out


@pytest.mark.parametrize(
    "annotation, message",
    [
        ("box", "annotation number 1 in its json is 'box' (text); it must be an object"),
        (without("id"), "annotation number 1 in its json lacks id; it needs id, image_id, category_id and bbox"),
        (without("bbox"), "annotation 1 has bbox null; it must be [x, y, width, height], four numbers"),
        ({**BOX, "id": None}, "annotation number 1 in its json has id null; it must be an integer or text"),
        ({**BOX, "id": True}, "annotation number 1 in its json has id true"),
        ({**BOX, "id": 2**63}, "annotation number 1 in its json has id 9223372036854775808"),
        ({**BOX, "image_id": [5]}, "annotation 1 has image_id [5] (a list); it must be an integer or text"),
        ({**BOX, "image_id": 5.5}, "annotation 1 has image_id 5.5"),
        ({**BOX, "category_id": True}, "annotation 1 has category_id true"),
        ({**BOX, "category_id": 8}, "annotation 1 has category_id 8, which is not the id of a category"),
        ({**BOX, "ignore": 1}, 'annotation 1 has "ignore" 1; use "iscrowd": 1'),
        ({**BOX, "iscrowd": "0"}, "annotation 1 has iscrowd '0' (text); it must be the number 0 or 1"),
        ({**BOX, "iscrowd": -1}, "annotation 1 has iscrowd -1"),
        ({**BOX, "iscrowd": float("nan")}, "annotation 1 has iscrowd NaN"),
        ({**BOX, "area": "12"}, "annotation 1 has area '12' (text); it must be a number of at least 0"),
        ({**BOX, "area": -1}, "annotation 1 has area -1"),
        ({**BOX, "area": float("inf")}, "annotation 1 has area Infinity"),
        ({**BOX, "bbox": [1, 2, 3]}, "annotation 1 has bbox [1, 2, 3] (a list); it must be [x, y, width, height]"),
        ({**BOX, "bbox": {"x": 1}}, "annotation 1 has bbox {'x': 1} (an object)"),
        ({**BOX, "bbox": [1, 2, 3, "4"]}, "annotation 1 has bbox[3] '4' (text); it must be a finite number"),
        ({**BOX, "bbox": [1, None, 3, 4]}, "annotation 1 has bbox[1] null"),
        ({**BOX, "bbox": [1, 2, float("nan"), 4]}, "annotation 1 has bbox[2] NaN"),
        ({**BOX, "bbox": [10**400, 2, 3, 4]}, "annotation 1 has bbox[0] 1000"),
        ({**BOX, "bbox": [10**5000, 2, 3, 4]}, "annotation 1 has bbox[0] an integer of thousands of digits"),
        ({**BOX, "bbox": [1e7, 2, 3, 4]}, "annotation 1 has bbox[0] 10000000.0; it must be a coordinate in pixels"),
        ({**BOX, "bbox": [1, 2, -3, 4]}, "annotation 1 has bbox [1, 2, -3, 4] (a list) with a negative size"),
    ],
)
def test_a_fault_names_annotation_field_value_and_what_it_must_be(annotation, message):
    good = {**BOX, "id": 9}
    content, findings = check(annotation, good, skip=True)
    assert content.annotations == [good]
    (entry,) = findings.left_out
    assert entry.data_set == "pets" and entry.annotation == 1 and entry.reason.startswith(message)
    with pytest.raises(UserError) as e:
        check(annotation, good)[1].raise_faults()
    assert str(e.value).startswith(f"data set pets: {message}") and "\n" not in str(e.value)
    assert "DATASETS.ON_ERROR skip" in str(e.value)


def test_a_fault_comes_with_the_number_of_its_kind_and_of_other_kinds():
    odd = [{**BOX, "id": i, "iscrowd": "no"} for i in (1, 2, 3)] + [{**BOX, "id": 4, "area": "x"}]
    with pytest.raises(UserError, match=r"annotation 1 has iscrowd 'no' .*\(3 annotations.*Faults of other kinds: 1"):
        check(*odd)[1].raise_faults()


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, True, False])
def test_iscrowd_may_be_written_as_an_integer_a_float_or_a_truth_value(value):
    content, findings = check({**BOX, "iscrowd": value})
    assert content.annotations[0]["iscrowd"] == int(value) and type(content.annotations[0]["iscrowd"]) is int
    assert not findings.faults and not findings.notes


@pytest.mark.parametrize("annotation", [{**BOX, "iscrowd": None, "area": None}, {k: BOX[k] for k in list(BOX)[:4]}])
def test_missing_iscrowd_and_area_are_completed_and_noted(annotation):
    content, findings = check(annotation, {**annotation, "id": 2})
    assert [(a["iscrowd"], a["area"]) for a in content.annotations] == [(0, 12), (0, 12)]  # 3 * 4
    assert [(kind.split(",")[0], found.count) for kind, found in findings.notes.items()] == [
        ("annotations have no iscrowd", 2),
        ("annotations have no area", 2),
    ]


def test_integers_may_be_written_as_floats():
    image, category = {**IMAGE, "id": 5.0, "width": 20.0}, {"id": 7.0, "name": "dog"}
    content, _ = check({**BOX, "id": 1.0, "image_id": 5.0}, images=[image], categories=[category])
    assert json.dumps(content.annotations) == json.dumps([BOX])
    assert json.dumps(content.images) == json.dumps([IMAGE])


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("image_id", "5", "image_id '5' (text), but the ids of the images in its json are numbers, not text"),
        ("category_id", "7", "category_id '7' (text), but the ids of the categories in its json are numbers, not text"),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_ids_of_another_type_than_what_they_refer_to_are_always_refused(key, value, message, skip):
    with pytest.raises(UserError) as e:
        check(BOX, {**BOX, "id": 2, key: value}, skip=skip)
    assert f"annotation 2 has {message}" in str(e.value)


def test_ids_that_are_text_everywhere_are_used():
    data = {"images": [{**IMAGE, "id": "i"}], "categories": [{"id": "c", "name": "dog"}]}
    content, findings = check({**BOX, "image_id": "i", "category_id": "c"}, **data)
    assert content.annotations == [{**BOX, "image_id": "i", "category_id": "c"}]
    assert not findings.notes


@pytest.mark.parametrize("ids", [[0, 1, 2], [-1, 5, 6], ["a", "b", "c"]])
def test_ids_that_evaluation_cannot_use_are_replaced(ids):
    content, findings = check(*({**BOX, "id": i} for i in ids))
    assert [a["id"] for a in content.annotations] == [1, 2, 3]
    ((note, found),) = findings.notes.items()
    assert note.startswith("annotation ids are not positive integers") and str(ids[0]) in found.first


def test_equal_and_mixed_annotation_ids_are_refused():
    with pytest.raises(UserError, match="annotation id 1 occurs 2 times"):
        check(BOX, BOX)
    with pytest.raises(UserError, match="some annotation ids in its json are numbers and some are text"):
        check(BOX, {**BOX, "id": "x"})


def test_annotations_of_images_that_are_not_listed_are_noted_and_those_of_images_left_out_are_not():
    broken = {"id": 6, "file_name": "b.png", "width": 0, "height": 3}
    elsewhere = {**BOX, "id": 3, "image_id": 77}
    content, findings = check(BOX, {**BOX, "id": 2, "image_id": 6}, elsewhere, skip=True, images=[IMAGE, broken])
    assert content.annotations == [BOX]
    ((note, found),) = findings.notes.items()
    assert "not listed" in note and (found.count, found.first) == (1, "annotation 3")


GEOMETRY = [
    ([1, 2, 0, 4], "boxes have no area"),
    ([30, 2, 3, 4], "boxes lie outside of their image"),
    ([-9, 2, 9, 4], "boxes lie outside of their image"),  # touches the left border
    ([10, 2, 20, 4], "boxes extend beyond their image"),
    ([0.4, 0.3, 0.2, 0.5], "boxes are smaller than a pixel"),
]


@pytest.mark.parametrize("box, kind", GEOMETRY)
def test_odd_boxes_are_noted_and_used(box, kind):
    content, findings = check(BOX, {**BOX, "id": 2, "bbox": box}, {**BOX, "id": 3, "bbox": box})
    assert len(content.annotations) == 3
    ((note, found),) = findings.notes.items()
    assert note.startswith(kind) and found.count == 2 and found.first == f"annotation 2 with bbox {box}"


@pytest.mark.parametrize("box, kind", GEOMETRY)
def test_boxes_without_an_area_in_their_image_are_left_out_if_faults_are(box, kind):
    content, findings = check(BOX, {**BOX, "id": 2, "bbox": box}, skip=True)
    useless = kind in ("boxes have no area", "boxes lie outside of their image")
    assert [a["id"] for a in content.annotations] == ([1] if useless else [1, 2])
    assert [entry.annotation for entry in findings.left_out] == ([2] if useless else [])


_NUMBERS = [True, float("nan"), float("inf"), -1, 0, 1, 5, 7, 2**70, 10**400, 1.5, 5.0]
_ODD = st.sampled_from([*_NUMBERS, None, "1", "", [], {}, [1]])
_VALUE = st.one_of(_ODD, st.lists(_ODD, max_size=5), st.just([1, 2, 3, 4]))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from([*BOX, "ignore"]), _VALUE), st.sets(st.sampled_from(list(BOX)), max_size=2))
def test_whatever_passes_the_fast_test_passes_the_thorough_one_unchanged(changes, missing):
    annotation = {k: v for k, v in {**BOX, **changes}.items() if k not in missing}
    findings = Findings("pets")
    checker = _Check({5: IMAGE}, set(), {3, 7}, findings, masks=None)
    if checker.are_regular([annotation]):
        used = checker.annotation(annotation, 1)
        assert used == {k: v for k, v in annotation.items() if k != "ignore"}
        assert not findings.faults and not findings.notes


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.one_of(_VALUE, st.dictionaries(st.sampled_from([*BOX, "segmentation"]), _VALUE)), max_size=3),
    st.sampled_from([None, "polygon", "bitmask"]),
)
def test_any_annotations_are_used_left_out_or_refused(annotations, masks):
    whole = [{**BOX, "id": i, **a} if isinstance(a, dict) else a for i, a in enumerate(annotations, 1)]
    try:
        content, _ = check(*whole, skip=True, masks=masks)
    except UserError:
        return
    for a in content.annotations:
        assert type(a["id"]) is int and a["image_id"] == 5 and a["category_id"] in (3, 7) and a["iscrowd"] in (0, 1)
        assert all(abs(v) <= 1e6 for v in a["bbox"]) and min(a["bbox"][2:]) > 0 and a["area"] >= 0


def test_crowds_need_no_segmentation_because_masks_of_crowds_are_never_used():
    polygon = {"segmentation": [[1, 2, 4, 2, 4, 6]]}
    content, findings = check({**BOX, **polygon}, {**BOX, "id": 2, "iscrowd": 1}, masks="polygon")
    assert [a.get("segmentation") for a in content.annotations] == [polygon["segmentation"], None]
    assert not findings.faults and not findings.notes


def test_polygons_that_are_not_used_are_counted():
    polygons = [[1, 2, 4, 2, 4, 6], [1, 2, 3, 4], []]
    content, findings = check({**BOX, "segmentation": polygons}, masks="polygon")
    assert content.annotations[0]["segmentation"] == polygons[:1]
    ((kind, found),) = findings.notes.items()
    assert "fewer than three corners, which are not used" in kind
    assert (found.first, found.count) == ("annotation 1", 1)
