"""TEST.AUG through train_net.py; in the whole process's number of threads, on which the last digits depend."""

import json


def read(folder):
    return json.loads((folder / "shapes_val" / "coco_instances_results.json").read_text())


def test_train_net_tests_with_augmentation_in_addition(tiny, trained, run, tmp_path):
    """Evaluation alone and the end of a training: the plain results as ever, and those with augmentation."""
    aug = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(96, 128)", "OUTPUT_DIR", tmp_path]
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth"]
    assert run("train_net.py", "--config-file", tiny, "--eval-only", *weights, *aug) == 0
    assert read(tmp_path / "inference") == read(trained / "inference/")
    assert read(tmp_path / "inference_TTA") != read(tmp_path / "inference")

    assert run("train_net.py", "--config-file", tiny, *weights, *aug, "SOLVER.MAX_ITER", 1) == 0
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert last["bbox/AP50"] > 30 and last["bbox_TTA/AP50"] > 30
    assert last["bbox/AP"] != last["bbox_TTA/AP"]
