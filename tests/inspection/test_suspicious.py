import csv

import pytest
from clq.data.datasets import class_names
from clq.inspection.suspicious import find_suspicious, read_annotated, worst_first, write_suspicious

PLANTED = [(109, "outside"), (102, "duplicate"), (105, "two classes"), (106, "tiny"), (108, "beyond"), (112, "thin")]


@pytest.fixture
def records(config, planted):
    config("DATASETS.COCO_JSON", [planted])
    return read_annotated("planted")


def ids_of(records, suspicions):
    return [(records[s.record]["annotations"][s.object]["id"], s.kind) for s in suspicions]


def test_planted_mistakes_are_found_and_nothing_else(records):
    suspicions = find_suspicious(records, class_names("planted"))
    assert ids_of(records, suspicions) == [*PLANTED, (111, "huge")]


def test_the_later_of_two_boxes_is_reported_with_the_earlier_one(records):
    same, other = find_suspicious(records, class_names("planted"))[1:3]
    assert "annotation 101" in same.reason and "IoU 0.95" in same.reason  # 39 / 41
    assert "annotation 104, a cat" in other.reason


def test_the_worst_of_each_kind_come_first(record):
    two = record([(0, 0, 3, 3), (50, 50, 52, 52)])  # tiny, twice
    smaller, outside = record([(0, 0, 1, 1)]), record([(200, 200, 210, 210)])
    suspicions = find_suspicious([two, smaller, outside, record([(9, 9, 50, 50)])], ["a"])
    assert [(s.record, s.kind) for s in suspicions] == [(2, "outside"), (1, "tiny"), (0, "tiny"), (0, "tiny")]
    assert worst_first(suspicions) == [2, 1, 0]


def test_kinds_take_turns(record):
    tiny, thin = record([(0, 0, 3, 3)]), record([(0, 0, 100, 5)])
    assert worst_first(find_suspicious([tiny, tiny, thin], ["a"])) == [0, 2, 1]


def test_crowds_do_not_count(record):
    one = record([(10, 10, 50, 50), (10, 10, 50, 50)])
    one["annotations"][0]["iscrowd"] = 1
    assert find_suspicious([one], ["a"]) == []


def test_a_pixel_beyond_the_image_is_rounding(record):
    assert find_suspicious([record([(-1, 10, 50, 50), (100, 50, 161, 121)])], ["a"]) == []


def test_the_table_has_the_boxes_of_the_json(records, tmp_path):
    names = class_names("planted")
    write_suspicious(str(tmp_path / "s.csv"), find_suspicious(records, names), records, names)
    with open(tmp_path / "s.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(int(r["annotation_id"]), r["kind"]) for r in rows] == [*PLANTED, (111, "huge")]
    assert rows[0]["image"].endswith("4.png") and rows[0]["class"] == "dog"
    assert [float(rows[4][key]) for key in ("x", "y", "width", "height")] == [140, 50, 60, 30]
