import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def browse(tiny, run_clq, tmp_path):
    def run(*argv):
        assert run_clq("browse", "--config-file", tiny, "--output", tmp_path / "out", *argv) == 0
        return sorted(path.name for path in (tmp_path / "out").iterdir())

    return run


def test_pictures_a_sheet_and_a_table_are_written(browse, tmp_path, capsys):
    names = browse("--count", "3")
    assert len(names) == 5 and names[-2:] == ["sheet.jpg", "suspicious.csv"]
    assert [name[:4] for name in names[:3]] == ["001_", "002_", "003_"]
    assert f"{tmp_path}/out/sheet.jpg" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "sheet.jpg") as sheet:
        assert sheet.width > 2 * 480


def test_the_seed_chooses_images_and_augmentations(browse, tmp_path):
    def pictures(seed):
        names = [n for n in browse("--count", "2", "--random", "--seed", seed) if n[0] == "0"]
        return {n: np.asarray(Image.open(tmp_path / "out" / n)) for n in names}

    first, again = pictures("1"), pictures("1")
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert set(pictures("2")) != set(first)  # those of the first seed are still there


def test_only_suspicious_images_of_any_data_set(browse, tmp_path, capsys):
    names = browse("--suspicious", "--raw", "--dataset", "shapes_val")
    with open(tmp_path / "out" / "suspicious.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert names == ["suspicious.csv"] and not rows
    assert "no image to draw" in capsys.readouterr().out


def test_a_box_drawn_twice_is_marked_in_red(tiny, browse, tmp_path):
    data = json.loads((Path(tiny).parent / "shapes_val.json").read_text())
    data["annotations"].append({**data["annotations"][2], "id": 999})
    (tmp_path / "twice.json").write_text(json.dumps(data))
    entry = {"name": "twice", "json": str(tmp_path / "twice.json"), "images": str(Path(tiny).parent / "shapes_val")}
    opts = ["DATASETS.COCO_JSON", [entry], "DATASETS.TRAIN", "['twice']", "DATASETS.TEST", "[]"]
    name, *others = browse("--suspicious", "--raw", *opts)
    assert name == "001_1.jpg" and others == ["sheet.jpg", "suspicious.csv"]
    x, y, _w, h = np.array(data["annotations"][2]["bbox"]) * 1200 / 96  # of an image of 96 pixels
    picture = np.asarray(Image.open(tmp_path / "out" / name)).astype(int)
    red, green, blue = picture[round(y + h / 3), round(x) + 4]
    assert red > 200 and green < 60 and blue < 60
    assert "999" in (tmp_path / "out" / "suspicious.csv").read_text()


def test_other_models_are_drawn_without_positives(browse):
    assert "sheet.jpg" in browse("--count", "1", "MODEL.META_ARCHITECTURE", "RetinaNet")


def test_an_unknown_data_set_is_refused(tiny, run_clq, tmp_path, capsys):
    assert run_clq("browse", "--config-file", tiny, "--output", tmp_path, "--dataset", "nothing_like_it") == 2
    assert "no data set nothing_like_it" in capsys.readouterr().err
