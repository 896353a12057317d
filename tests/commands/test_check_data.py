"""``clq check-data``: the checks before a training, and what each data set contains."""

import json
from pathlib import Path

import pytest
from clq.commands.check_data import summarize


def content(tiny, name):
    return json.loads((Path(tiny).parent / f"{name}.json").read_text())


def test_each_set_is_summarized(tiny, run_clq, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_clq("check-data", "--config-file", tiny) == 0
    lines = capsys.readouterr().out.splitlines()
    for split, name in (("TRAIN", "shapes_train"), ("TEST", "shapes_val")):
        ids = [a["category_id"] for a in content(tiny, name)["annotations"]]
        start = lines.index(f"DATASETS.{split} {name}")
        assert [line.strip() for line in lines[start + 1 : start + 5]] == [
            f"{len(content(tiny, name)['images'])} images, 0 of them without a box",
            f"{len(ids)} boxes of 2 classes",
            f"blue  {ids.count(3)}",
            f"red   {ids.count(7)}",
        ]
    num_objects = len(content(tiny, "shapes_train")["annotations"])
    assert f"Sizes of {num_objects} objects in all 16 images of shapes_train" in lines
    assert not list(tmp_path.iterdir())  # OUTPUT_DIR, ./output, is left alone


def test_a_fault_is_one_line_and_what_is_left_out_is_counted(tiny, run_clq, capsys, tmp_path):
    data = content(tiny, "shapes_val")
    data["annotations"][0]["bbox"] = [1, 2, 3]
    (tmp_path / "faulty.json").write_text(json.dumps(data))
    images = str(Path(tiny).parent / "shapes_val")
    entries = [{"name": "faulty", "json": str(tmp_path / "faulty.json"), "images": images}]
    opts = ["DATASETS.COCO_JSON", entries, "DATASETS.TRAIN", "['faulty']", "DATASETS.TEST", "[]"]
    assert run_clq("check-data", "--config-file", tiny, *opts) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clq check-data: data set faulty: ")
    assert run_clq("check-data", "--config-file", tiny, *opts, "DATASETS.ON_ERROR", "skip") == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "1 images or annotations left out" in lines
    assert f"{len(data['annotations']) - 1} boxes of 2 classes" in lines


def test_the_number_of_classes_is_checked(tiny, run_clq, capsys):
    assert run_clq("check-data", "--config-file", tiny, "MODEL.CLQ.NUM_CLASSES", 5) == 2
    assert "MODEL.CLQ.NUM_CLASSES is 5 but data set shapes_train has 2 classes" in capsys.readouterr().err


def test_a_config_is_required(run_clq, capsys):
    assert run_clq("check-data") == 2
    assert "--config-file" in capsys.readouterr().err


@pytest.mark.parametrize("crowd, boxes", [(0, 2), (1, 1)])
def test_crowds_and_images_without_boxes(crowd, boxes):
    records = [
        {"annotations": [{"category_id": 1, "iscrowd": 0}]},
        {"annotations": [{"category_id": 0, "iscrowd": crowd}]},
        {"annotations": []},
        {},  # a test set without annotations
    ]
    assert list(summarize(records, ["a", "bee"])) == [
        f"4 images, {2 + crowd} of them without a box",
        f"{boxes} boxes of 2 classes",
        f"  a    {1 - crowd}",
        "  bee  1",
    ]
