"""Metrics of two small images, worked out by hand and compared with those of COCOEvaluator."""

import json
import math

import pytest
import torch
from clq.data.datasets import register_coco_json
from clq.evaluation.metrics import METRICS, box_metrics
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

OBJECTS = [(1, [10, 10, 40, 40]), (1, [60, 60, 20, 20]), (2, [0, 0, 50, 50])]  # (image, XYWH): two medium, one small
DETECTIONS = {  # by image: (XYXY, score)
    1: [([10, 10, 50, 50], 0.9), ([60, 60, 80, 74], 0.6)],  # IoU 1, and 14 / 20 = 0.7
    2: [([60, 0, 90, 50], 0.8)],  # on no object
}


@pytest.fixture
def files(tmp_path):
    """Paths of the annotations and of the results, and the metrics of COCOEvaluator, which wrote the results."""
    annotations = [
        {"id": i, "image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (image, box) in enumerate(OBJECTS, start=1)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in DETECTIONS]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    register_coco_json([{"name": "metrics", "json": str(tmp_path / "truth.json"), "images": str(tmp_path)}])
    DatasetCatalog.get("metrics")  # adds the categories to the metadata
    evaluator = COCOEvaluator("metrics", tasks=("bbox",), output_dir=str(tmp_path), use_fast_impl=False)
    evaluator.reset()
    for image, found in DETECTIONS.items():
        boxes, scores = zip(*found, strict=True)
        instances = Instances((100, 100))
        instances.pred_boxes, instances.scores = Boxes(torch.tensor(boxes)), torch.tensor(scores)
        instances.pred_classes = torch.zeros(len(found), dtype=torch.int64)
        evaluator.process([{"image_id": image}], [{"instances": instances}])
    yield str(tmp_path / "truth.json"), str(tmp_path / "coco_instances_results.json"), evaluator.evaluate()["bbox"]
    DatasetCatalog.remove("metrics")
    MetadataCatalog.remove("metrics")


def test_average_precisions_are_those_of_coco_evaluator(files):
    truth, results, expected = files
    metrics = box_metrics(truth, results)
    assert tuple(metrics) == METRICS
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert metrics[name] == pytest.approx(expected[name], nan_ok=True)


def test_metrics_by_hand(files):
    """At 101 recalls, the precision is 1 up to 1/3 (34 of them) and, up to an IoU of 0.65, 2/3 up to 2/3 (33)."""
    metrics = box_metrics(*files[:2])
    assert metrics["AP50"] == pytest.approx(100 * (34 + 33 * 2 / 3) / 101)
    assert metrics["AP75"] == pytest.approx(100 * 34 / 101)
    assert math.isnan(metrics["APl"])  # there is no large object
    assert metrics["score-IoU"] == pytest.approx(0.5)  # ranks of the scores 3 1 2, of the IoUs 3 2 1


@pytest.mark.parametrize("max_dets, recall", [(11, 0), (12, 100 / 3)])
def test_only_so_many_detections_per_image_count(files, tmp_path, max_dets, recall):
    """Of twelve detections, only the last is on one of the three objects."""
    boxes = [[0, 90, 5, 5]] * 11 + [OBJECTS[0][1]]
    results = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9 - 0.01 * i} for i, box in enumerate(boxes)]
    (tmp_path / "twelve.json").write_text(json.dumps(results))
    metrics = box_metrics(files[0], str(tmp_path / "twelve.json"), max_dets=max_dets)
    assert metrics["AR"] == pytest.approx(recall)


def test_no_detections_give_an_average_precision_of_zero(files, tmp_path):
    (tmp_path / "nothing.json").write_text("[]")
    metrics = box_metrics(files[0], str(tmp_path / "nothing.json"))
    assert metrics["AP"] == metrics["AR"] == 0 and math.isnan(metrics["score-IoU"])
