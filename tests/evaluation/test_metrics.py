import json
from pathlib import Path

import pytest
from clq.evaluation.metrics import METRICS, box_metrics


def test_metrics_are_those_that_training_printed(trained, tiny, tmp_path):
    results = trained / "inference/shapes_val/coco_instances_results.json"
    truth = str(Path(tiny).with_name("shapes_val.json"))
    metrics = box_metrics(truth, str(results))
    last = json.loads((trained / "metrics.json").read_text().splitlines()[-1])
    assert tuple(metrics) == METRICS
    for name in ("AP", "AP50", "AP75", "APm"):
        assert metrics[name] == pytest.approx(last[f"bbox/{name}"])
    assert metrics["AP"] <= metrics["AR"] <= 100
    assert 0 < metrics["score-IoU"] <= 1  # most of what scores high lies on an object
    (tmp_path / "nothing.json").write_text("[]")
    assert box_metrics(truth, str(tmp_path / "nothing.json"))["AP"] == 0
