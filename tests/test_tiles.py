"""DATASETS.TILE in training, evaluation and prediction, with one image that is made of four."""

import json
from pathlib import Path

import clq
import numpy as np
import pytest
from clq.data.loader import build_train_loader
from clq.data.mapper import build_train_mapper
from PIL import Image

TILES = ["DATASETS.TILE.SIZE", 96, "DATASETS.TILE.OVERLAP", 0.0]
CORNERS = (0, 0), (96, 0), (0, 96), (96, 96)  # (x, y) of the four images


@pytest.fixture
def large(tiny, tmp_path):
    """Opts that declare the data set ``large``: the four validation images in one, with their boxes."""
    folder = Path(tiny).parent / "shapes_val"
    data = json.loads(folder.with_suffix(".json").read_text())
    image = np.zeros((192, 192, 3), np.uint8)
    for i, (x, y) in enumerate(CORNERS):
        image[y : y + 96, x : x + 96] = np.asarray(Image.open(folder / f"{i}.png").convert("RGB"))
    Image.fromarray(image).save(tmp_path / "large.png")
    for a in data["annotations"]:
        x, y = CORNERS[a["image_id"] - 1]
        a["bbox"], a["image_id"] = [a["bbox"][0] + x, a["bbox"][1] + y, *a["bbox"][2:]], 1
    data["images"] = [{"id": 1, "file_name": "large.png", "width": 192, "height": 192}]
    (tmp_path / "large.json").write_text(json.dumps(data))
    sets = [{"name": "large", "json": str(tmp_path / "large.json"), "images": str(tmp_path)}]
    return ["DATASETS.COCO_JSON", sets, "DATASETS.TRAIN", ("large",), "DATASETS.TEST", ("large",)]


def test_evaluation_scores_the_whole_image(large, tiny, trained, run, tmp_path):
    argv = ["--config-file", tiny, "--eval-only", "MODEL.WEIGHTS", trained / "model_final.pth", *large, *TILES]
    assert run("train_net.py", *argv, "OUTPUT_DIR", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out/inference/large/coco_instances_results.json").read_text())
    assert {r["image_id"] for r in found} == {1}
    predictor = clq.load(trained)
    parts = predictor([str(Path(tiny).parent / "shapes_val" / f"{i}.png") for i in range(4)])
    boxes = np.concatenate([p.boxes + np.tile(corner, 2) for p, corner in zip(parts, CORNERS, strict=True)])
    best = np.argsort(-np.concatenate([p.scores for p in parts]), kind="stable")[:100]
    boxes[:, 2:] -= boxes[:, :2]
    np.testing.assert_allclose(sorted(r["bbox"] for r in found), sorted(boxes[best].tolist()), atol=1e-3)


def test_training_sees_the_tiles(large, tiny):
    cfg = clq.setup_cfg(tiny, [*large, *TILES])
    loader = build_train_loader(cfg, build_train_mapper(cfg))
    seen = {}
    for batch, _ in zip(loader, range(3), strict=False):
        for sample in batch:
            assert tuple(sample["image"].shape) == (3, 96, 96)
            seen[sample["tile"][:2]] = len(sample["instances"])
    assert seen == dict.fromkeys(CORNERS, 2)


def test_a_training_on_tiles_runs(large, tiny, run, tmp_path):
    opts = [*large, *TILES, "SOLVER.MAX_ITER", 2, "OUTPUT_DIR", tmp_path / "out"]
    assert run("train_net.py", "--config-file", tiny, *opts) == 0
    assert clq.load(tmp_path / "out").cfg.DATASETS.TILE.SIZE == 96  # a prediction cuts images as well


@pytest.mark.parametrize("opts, message", [(["DATASETS.TILE.OVERLAP", 1.0], "DATASETS.TILE.OVERLAP 1.0")])
def test_a_mistake_is_one_line(opts, message, tiny, run, capsys):
    assert run("train_net.py", "--config-file", tiny, *opts) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
