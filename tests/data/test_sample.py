"""The sample data set, made from a small generated photograph by the same rules; nothing is downloaded."""

import json
import subprocess

import numpy as np
import pytest
from clq.data import sample
from clq.errors import UserError
from detectron2.data.datasets import load_coco_json
from PIL import Image

WIDTH, HEIGHT = 1000, 500  # line at 670; tiles start at x 0, 270 and y 0, 100
BOXES = [  # VOC counts pixels from 1 and includes the last one
    (11, 21, 30, 60),  # only in tile (0, 0): y from 20 to 60
    (301, 151, 340, 200),  # entirely in all four tiles
    (641, 301, 670, 330),  # touches the line from the left: training, in both right tiles
    (651, 401, 690, 440),  # crosses the line: in neither part
    (671, 101, 700, 140),  # touches the line from the right: validation
    (981, 471, 1000, 500),  # in the lower right corner: validation
]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Replaces the download by a package with one photograph; returns the list of downloads."""
    monkeypatch.setattr(sample, "PHOTOGRAPHS", {"photo": sample.Photograph(WIDTH, HEIGHT, len(BOXES))})
    calls = []

    def fetch(target):
        calls.append(target)
        data = target / "deepforest" / "data"
        data.mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / "photo.png")
        objects = "".join(
            f"<object><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
            for a, b, c, d in BOXES
        )
        (data / "photo.xml").write_text(f"<annotation>{objects}</annotation>")
        licences = target / "deepforest-2.1.0.dist-info" / "licenses"
        licences.mkdir(parents=True)
        (licences / "LICENSE").write_text("MIT License")

    monkeypatch.setattr(sample, "fetch", fetch)
    return calls


def boxes_by_image(folder, part):
    content = json.loads((folder / f"{part}.json").read_text())
    found = {image["file_name"]: [] for image in content["images"]}
    names = {image["id"]: image["file_name"] for image in content["images"]}
    for a in content["annotations"]:
        assert a["area"] == a["bbox"][2] * a["bbox"][3] and a["iscrowd"] == 0
        found[names[a["image_id"]]].append(a["bbox"])
    return found


def test_each_box_is_in_the_images_that_the_rules_give(package, tmp_path):
    sample.prepare(tmp_path / "sample")
    assert boxes_by_image(tmp_path / "sample", "train") == {
        "photo_0_0.png": [[10, 20, 20, 40], [300, 150, 40, 50]],
        "photo_270_0.png": [[30, 150, 40, 50], [370, 300, 30, 30]],
        "photo_0_100.png": [[300, 50, 40, 50]],
        "photo_270_100.png": [[30, 50, 40, 50], [370, 200, 30, 30]],
    }
    assert boxes_by_image(tmp_path / "sample", "val") == {"photo_val.png": [[0, 100, 30, 40], [310, 470, 20, 30]]}


def test_training_and_validation_share_no_pixel(package, tmp_path):
    sample.prepare(tmp_path / "sample")
    photo = np.asarray(Image.open(tmp_path / "sample" / "images" / "photo_270_100.png"))
    strip = np.asarray(Image.open(tmp_path / "sample" / "images" / "photo_val.png"))
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    assert np.array_equal(photo, pixels[100:500, 270:670])  # the rightmost tiles end at the line
    assert np.array_equal(strip, pixels[:, 670:])


def test_detectron2_reads_the_json(package, tmp_path):
    sample.prepare(tmp_path / "sample")
    records = load_coco_json(tmp_path / "sample" / "val.json", str(tmp_path / "sample" / "images"))
    assert [(r["width"], r["height"], len(r["annotations"])) for r in records] == [(330, 500, 2)]


def test_a_second_run_does_nothing_and_a_damaged_folder_is_prepared_again(package, tmp_path):
    output = tmp_path / "sample"
    assert sample.prepare(output) and not sample.prepare(output)
    assert len(package) == 1
    first = (output / "train.json").read_bytes()
    (output / "images" / "photo_0_0.png").unlink()
    assert sample.prepare(output) and len(package) == 2
    assert (output / "images" / "photo_0_0.png").is_file() and (output / "train.json").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]  # nothing temporary is left


def test_an_interrupted_run_leaves_nothing_behind(package, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "build", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sample.prepare(tmp_path / "sample")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_contents_is_not_changed(package, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not a sample data set, so nothing was changed"):
        sample.prepare(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_changed_package_is_refused(package, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "PHOTOGRAPHS", {"photo": sample.Photograph(WIDTH, HEIGHT, 7)})
    with pytest.raises(UserError, match=r"photo has 1000 x 500 pixels and 6 boxes instead of .* 7 boxes"):
        sample.prepare(tmp_path / "sample")
    assert list(tmp_path.iterdir()) == []


def test_credits_and_licence_are_in_the_folder(package, tmp_path):
    sample.prepare(tmp_path / "sample")
    assert (tmp_path / "sample" / "LICENSE").read_text() == "MIT License"
    assert "deepforest" in (tmp_path / "sample" / "CREDITS.txt").read_text()


def test_a_failed_download_is_reported_in_one_line(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="error: no route\n\n")
    monkeypatch.setattr(sample.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(sample, "_installer", lambda: ["uv", "pip", "install"])
    with pytest.raises(UserError, match=r"could not be fetched \(error: no route\).*check the connection") as e:
        sample.prepare(tmp_path / "sample")
    assert "\n" not in str(e.value) and "deepforest==2.1.0" in str(e.value)


def test_a_missing_installer_is_reported(monkeypatch):
    monkeypatch.setattr(sample.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(sample.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="neither uv nor pip"):
        sample._installer()
