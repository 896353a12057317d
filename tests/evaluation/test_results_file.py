"""Files of detections: good ones are measured, damaged ones are refused in one line."""

import json
import math

import hypothesis
import pytest
from clq.errors import UserError
from clq.evaluation.matches import match_results
from clq.evaluation.metrics import box_metrics
from clq.evaluation.results_file import read_results, read_truth
from fuzzing import accepting_or_refusing, damaged_bytes, damaged_tree

RESULTS = [
    {"image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20.5], "score": 0.9},
    {"image_id": 2, "category_id": 3, "bbox": [5.0, 0, 40, 10], "score": 1},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths of the ground truth and of the detections, which are written anew."""
    folder = tmp_path_factory.mktemp("results")
    box = {"image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in (1, 2)],
        "annotations": [{"id": 1, **box}],
        "categories": [{"id": 3, "name": "a"}],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    return folder / "truth.json", folder / "results.json"


def measure(files):
    with accepting_or_refusing():
        metrics = box_metrics(*map(str, files))
        assert all(-1 <= value <= 100 or math.isnan(value) for value in metrics.values())
        match_results(*map(str, files))


@pytest.mark.fuzz
@hypothesis.given(content=damaged_bytes([json.dumps(RESULTS).encode()]))
def test_a_damaged_file(files, content):
    files[1].write_bytes(content)
    measure(files)


@pytest.mark.fuzz
@hypothesis.given(tree=damaged_tree({"results": RESULTS}))
def test_odd_values_in_a_file(files, tree):
    files[1].write_text(json.dumps(tree.get("results")))
    measure(files)


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"image_id": 7}, "has an unknown image_id"),
        ({"category_id": True}, "has an unknown category_id"),
        ({"score": math.nan}, "has no finite score"),
        ({"score": "1"}, "has no finite score"),
        ({"bbox": [1, 2, 3]}, "has no bbox"),
        ({"bbox": [1, 2, -3, 4]}, "has no bbox"),
        ({"bbox": [1, 2, 1e308, 1e308]}, "has no bbox"),
    ],
)
def test_what_is_wrong_with_a_detection_is_named(files, change, fault):
    files[1].write_text(json.dumps([RESULTS[0], {**RESULTS[1], **change}]))
    with pytest.raises(UserError, match=f"results.json: detection 2 {fault}"):
        read_results(str(files[1]), [1, 2], [3])


def test_the_truth_may_begin_with_a_byte_order_mark_and_must_be_coco_json(tmp_path):
    box = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
    truth = {"images": [{"id": 5}], "categories": [{"id": 7, "name": "dog"}], "annotations": [box]}
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth), encoding="utf-8-sig")
    assert read_truth(str(path)).getAnnIds(imgIds=[5]) == [1]
    for wrong in ([], {"images": 3}, {"annotations": [{}]}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"truth\.json: COCO's evaluation cannot read it"):
            read_truth(str(path))
