"""INPUT.LETTERBOX through train_net.py and demo.py; in the whole process's number of threads, as the digits depend."""

import json
from pathlib import Path

import numpy as np
import pytest

LETTERBOX = ["INPUT.LETTERBOX.ENABLED", True, "INPUT.LETTERBOX.SIZE"]


def evaluated(folder):
    """(image, category, x, y, w, h, score) of each detection, in their order."""
    results = json.loads((folder / "inference/shapes_val/coco_instances_results.json").read_text())
    return np.array([(r["image_id"] - 1, r["category_id"], *r["bbox"], r["score"]) for r in results])


@pytest.fixture
def evaluate(tiny, trained, run, tmp_path):
    """``evaluate([height, width])`` -> detections of the validation images, letterboxed to this size."""

    def call(size):
        argv = ["--config-file", tiny, "--eval-only", "MODEL.WEIGHTS", trained / "model_final.pth", *LETTERBOX, size]
        assert run("train_net.py", *argv, "OUTPUT_DIR", tmp_path) == 0
        return evaluated(tmp_path)

    return call


def test_a_letterbox_of_the_images_size_changes_nothing(evaluate, trained):
    assert np.allclose(evaluate([96, 96]), evaluated(trained), rtol=0, atol=1e-4)


def test_evaluation_and_demo_detect_alike_in_a_larger_frame(evaluate, trained, tiny, run, tmp_path):
    """Of 192 x 256 pixels: twice as large, 32 columns of black on either side; the boxes are in the images again."""
    found = evaluate([192, 256])
    assert len(found) > 10 and not np.array_equal(found, evaluated(trained))
    assert found[:, 2:4].min() >= 0 and (found[:, 2:4] + found[:, 4:6]).max() <= 96 + 1e-4
    argv = ["--config-file", tiny, "--input", Path(tiny).parent / "shapes_val", "--output", tmp_path]
    argv += ["--json", tmp_path / "r.json", "--confidence-threshold", 0]
    opts = ["MODEL.WEIGHTS", trained / "model_final.pth", *LETTERBOX, [192, 256]]
    assert run("demo.py", *argv, "--opts", *opts) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    by_demo = np.array([(r["image_id"], r["category_id"], *r["bbox"], r["score"]) for r in results])
    assert by_demo.shape == found.shape
    assert np.allclose(by_demo[by_demo[:, 6].argsort()], found[found[:, 6].argsort()], rtol=0, atol=1e-2)


def test_a_detector_trains_and_is_tested_letterboxed(tiny, run, tmp_path):
    """With all that NanoDet's training does to its images, whose values are real numbers then."""
    aug = {"SCALE": [0.6, 1.4], "SCALE_SAMPLING": "uniform", "SCALE_PROB": 0.5, "SHIFT": 0.2, "SHIFT_PROB": 0.5}
    aug |= {"BRIGHTNESS": 0.2, "CONTRAST": [0.6, 1.4], "SATURATION": [0.5, 1.2], "MIN_VISIBLE": 0.0}
    opts = [x for key, value in aug.items() for x in (f"INPUT.AUG.{key}", value)]
    opts += [*LETTERBOX, [96, 128], "SOLVER.MAX_ITER", 30, "OUTPUT_DIR", tmp_path]
    assert run("train_net.py", "--config-file", tiny, *opts) == 0
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert last["bbox/AP50"] > 10  # untrained: 0


def test_what_does_not_go_with_a_letterbox_is_refused_in_a_line(tiny, run, tmp_path, capsys):
    argv = ["--config-file", tiny, "OUTPUT_DIR", tmp_path, *LETTERBOX, [96, 96], "TEST.AUG.ENABLED", True]
    assert run("train_net.py", *argv) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "LETTERBOX" in x]
    assert "INPUT.LETTERBOX.ENABLED True: cannot be combined with TEST.AUG.ENABLED" in line
