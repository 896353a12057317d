"""The evaluation against what the check of a data set accepts, without images that cannot be read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from clq.data.datasets import register_coco_json
from clq.data.left_out import leave_out
from clq.data.mapper import UNREADABLE
from clq.evaluation.coco import BoxEvaluator, truth_file
from clq.evaluation.metrics import box_metrics
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

BOXES = {1: [10, 10, 20, 20], 2: [5, 5, 30, 10], 3: [0, 0, 15, 25]}  # of the image with this id, XYWH


@pytest.fixture
def pets(tmp_path):
    """``pets(change, **keys)`` registers a data set whose annotations have been passed to ``change``."""

    def register(change=lambda annotations: annotations, skip=False):
        data = {
            "categories": [{"id": 7, "name": "dog"}],
            "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in BOXES],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 7, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
                for i, b in BOXES.items()
            ],
        }
        data["annotations"] = change(data["annotations"])
        data = {key: value for key, value in data.items() if value is not None}
        (tmp_path / "pets.json").write_text(json.dumps(data))
        register_coco_json([{"name": "pets", "json": f"{tmp_path}/pets.json", "images": str(tmp_path)}], skip=skip)
        return tmp_path

    yield register
    leave_out("pets", [])
    if "pets" in DatasetCatalog:
        DatasetCatalog.remove("pets")
        MetadataCatalog.remove("pets")


def evaluate(folder, wrong=(), unreadable=(), extra=()):
    """Evaluates detections that are the boxes, but none in the images ``wrong``."""
    evaluator = BoxEvaluator(
        "pets", str(folder / "results"), left_out_folder=str(folder), max_dets_per_image=100, use_fast_impl=False
    )
    evaluator.reset()
    for image_id, (x, y, w, h) in BOXES.items():
        record = {"image_id": image_id, "file_name": str(folder / f"{image_id}.png")}
        found = Instances((64, 64))
        found.pred_boxes = Boxes(torch.tensor([[x, y, x + w, y + h]], dtype=torch.float))
        found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([0])
        if image_id in unreadable:
            record[UNREADABLE] = f"image {image_id}.png: is damaged."
        evaluator.process([record], [{"instances": found[: 0 if image_id in wrong else 1]}])
    return evaluator.evaluate()


def truth_of(folder):
    path = truth_file(folder / "results" / "coco_instances_results.json", "pets")
    return path, box_metrics(path, str(folder / "results" / "coco_instances_results.json"))["AP"]


def test_without_faults_the_json_itself_is_the_truth(pets):
    folder = pets()
    (folder / "results").mkdir()
    (folder / "results" / "annotations.json").write_text("{}")  # of an earlier evaluation
    assert evaluate(folder)["bbox"]["AP"] == pytest.approx(100)
    assert truth_of(folder) == (f"{folder}/pets.json", pytest.approx(100))
    assert not (folder / "results" / "annotations.json").exists()
    # Two of three objects at precision 1: COCO's 101 recalls, of which 67 (0 to 0.66) are reached.
    assert evaluate(folder, wrong=[2])["bbox"]["AP"] == pytest.approx(100 * 67 / 101)


def drop_area(annotations):
    return [{key: value for key, value in a.items() if key not in ("area", "iscrowd")} for a in annotations]


@pytest.mark.parametrize(
    "change",
    [
        drop_area,
        lambda annotations: [{**a, "iscrowd": None} for a in annotations],
        lambda annotations: [{**a, "id": a["id"] - 1} for a in annotations],
        lambda annotations: [{**a, "id": f"a{a['id']}"} for a in annotations],
        lambda annotations: [{**a, "segmentation": {"counts": "no size"}} for a in annotations],
    ],
)
def test_what_the_check_reads_as_something_else_is_evaluated_like_that(pets, change):
    folder = pets(change)
    assert evaluate(folder)["bbox"]["AP"] == pytest.approx(100)
    assert truth_of(folder)[1] == pytest.approx(100)


def test_faulty_annotations_are_left_out_of_the_evaluation(pets):
    folder = pets(lambda annotations: [*annotations[:2], {**annotations[2], "bbox": ["0", 0, 15, 25]}], skip=True)
    # The box of image 3 is not to be found, so the detection there is a false positive, of equal score with the others:
    # COCO sorts equal scores by the image, so it comes last and costs nothing.
    assert evaluate(folder)["bbox"]["AP"] == pytest.approx(100)
    assert evaluate(folder, wrong=[3])["bbox"]["AP"] == pytest.approx(100)
    path, ap = truth_of(folder)
    assert len(json.loads(Path(path).read_text())["annotations"]) == 2 and ap == pytest.approx(100)


def test_images_that_cannot_be_read_are_left_out_with_their_objects_and_are_listed(pets, caplog):
    folder = pets(skip=True)
    results = evaluate(folder, unreadable=[2])
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert truth_of(folder)[1] == pytest.approx(100)
    (line,) = (folder / "left_out.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "data_set": "pets", "image": f"{folder}/2.png", "annotation": None, "reason": "image 2.png: is damaged.",
    }  # fmt: skip
    assert "1 of 3 images are left out; the first: image 2.png: is damaged." in caplog.text


def test_what_the_check_has_left_out_is_not_listed_twice(pets):
    folder = pets(skip=True)
    leave_out("pets", [(f"{folder}/2.png", 2)])
    evaluate(folder, unreadable=[2, 3])
    (line,) = (folder / "left_out.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == f"{folder}/3.png"


def test_a_set_without_annotations_gets_results_but_no_metrics(pets):
    folder = pets(lambda annotations: None)
    assert evaluate(folder) == {}
    results = json.loads((folder / "results" / "coco_instances_results.json").read_text())
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in results] == [(i, 7, b) for i, b in BOXES.items()]


def test_a_set_of_crowds_has_no_average_precision(pets):
    folder = pets(lambda annotations: [{**a, "iscrowd": 1} for a in annotations])
    assert np.isnan(evaluate(folder)["bbox"]["AP"])
