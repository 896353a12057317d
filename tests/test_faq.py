"""docs/faq.md quotes messages as they are printed."""

import json
from pathlib import Path

import pytest

FAQ = (Path(__file__).parents[1] / "docs/faq.md").read_text()


@pytest.fixture(scope="module")
def swapped(tiny, tmp_path_factory):
    """The data sets of the tiny config, the second one with its two names exchanged."""
    folder = Path(tiny).parent
    content = json.loads((folder / "shapes_val.json").read_text())
    first, second = content["categories"]
    first["name"], second["name"] = second["name"], first["name"]
    path = tmp_path_factory.mktemp("swapped") / "val.json"
    path.write_text(json.dumps(content))
    train = {"name": "cells_train", "json": f"{folder}/shapes_train.json", "images": f"{folder}/shapes_train"}
    return [train, {"name": "cells_val", "json": str(path), "images": f"{folder}/shapes_val"}]


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.CLQ.NUM_CLASSES", "80"],
        ["MODEL.CLQ.NUM_CLASS", "2"],
        ["MODEL.MASK_ON", "True"],
        ["SWAPPED"],
        ["--config-file", "CLQ/clq_R50_FPN_1x"],
    ],
)
def test_what_is_refused_is_quoted(tiny, swapped, run_clq, capsys, tmp_path, opts):
    if opts == ["SWAPPED"]:
        opts = [
            "DATASETS.COCO_JSON",
            str(swapped),
            "DATASETS.TRAIN",
            "('cells_train',)",
            "DATASETS.TEST",
            "('cells_val',)",
        ]
    first, rest = (opts, []) if opts[0].startswith("-") else (["--config-file", tiny], opts)
    assert run_clq("train", *first, *rest, "OUTPUT_DIR", tmp_path / "output") == 2
    message = capsys.readouterr().err.splitlines()[-1].replace("shapes_", "cells_")
    assert message in FAQ.splitlines()


def test_a_folder_that_holds_a_training_is_quoted(tiny, trained, run_clq, capsys, monkeypatch):
    monkeypatch.chdir(trained.parent)
    assert run_clq("train", "--config-file", tiny, "OUTPUT_DIR", trained.name) == 2
    message = capsys.readouterr().err.splitlines()[-1].replace(f"DIR {trained.name}", "DIR output")
    assert message in FAQ.splitlines()
    assert run_clq("train", "--config-file", tiny, "--resume", "OUTPUT_DIR", trained.name) == 0
    message = capsys.readouterr().out.splitlines()[-1].replace(trained.name, "output")
    assert message in FAQ.splitlines()


def test_boxes_that_are_written_as_corners_are_quoted_as_what_they_look_like(tiny, run_clq, capsys, tmp_path):
    folder = Path(tiny).parent
    content = json.loads((folder / "shapes_train.json").read_text())
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]
    (tmp_path / "train.json").write_text(json.dumps(content))
    entry = {"name": "cells_train", "json": str(tmp_path / "train.json"), "images": f"{folder}/shapes_train"}
    opts = ["DATASETS.COCO_JSON", str([entry]), "DATASETS.TRAIN", "('cells_train',)", "DATASETS.TEST", "()"]
    assert run_clq("check-data", "--config-file", tiny, *opts) == 0
    quoted = next(line.strip() for line in FAQ.splitlines() if "boxes extend beyond their image" in line)
    output = capsys.readouterr()
    assert quoted in output.out + output.err
