import csv

import clq
import numpy as np
import pytest
from clq.commands.browse import main
from PIL import Image


@pytest.fixture
def browse(tiny, tmp_path):
    def run(*argv):
        assert main(["--config-file", tiny, "--output", str(tmp_path / "out"), *argv]) == 0
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


def test_other_models_are_drawn_without_positives(tiny, tmp_path):
    opts = ["MODEL.META_ARCHITECTURE", "RetinaNet"]
    assert main(["--config-file", tiny, "--output", str(tmp_path), "--count", "1", *opts]) == 0
    assert (tmp_path / "sheet.jpg").exists()


def test_an_unknown_data_set_is_refused(browse):
    with pytest.raises(clq.UserError, match="no data set nothing_like_it"):
        browse("--dataset", "nothing_like_it")
