"""Shared by the tests of this folder: catalogs that are restored after each test, and a small data set on disk."""

import hashlib
import json
import shutil

import clq  # noqa: F401  (first, because it makes Detectron2 importable)
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from other_formats import write_voc, write_yolo
from PIL import Image


@pytest.fixture(autouse=True)
def clean_catalogs():
    """Removes the data sets that a test registered."""
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def make(tmp_path):
    """``make(name, categories=..., **changes)`` writes a one-image COCO data set and returns its config entry.

    The image is 20 pixels wide and 10 high and has the id 5. ``changes`` replaces lists of the json; None removes one.
    """

    def write(name, categories=((7, "dog"), (3, "cat")), **changes):
        folder = tmp_path / f"{name}_images"
        folder.mkdir(exist_ok=True)
        if not (folder / "a.png").exists():
            color = tuple(hashlib.sha256(name.encode()).digest()[:3])  # another content in each data set
            Image.new("RGB", (20, 10), color).save(folder / "a.png")
        box = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
        content = {
            "categories": [{"id": i, "name": n} for i, n in categories],
            "images": [{"id": 5, "file_name": "a.png", "width": 20, "height": 10}],
            "annotations": [{**box, "category_id": categories[0][0]}],
        }
        content = {key: value for key, value in {**content, **changes}.items() if value is not None}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return {"name": name, "json": str(tmp_path / f"{name}.json"), "images": str(folder)}

    return write


BOXES = [(1, 7, [0, 0, 20, 10]), (1, 3, [1, 2, 3, 4]), (2, 3, [0, 3, 1, 7]), (3, 7, [7, 1, 11, 9])]
NAMES = ["a.png", "b.png", "c.png"]


@pytest.fixture
def coco(make, tmp_path, monkeypatch):
    """A data set of three images of 20 x 10 pixels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = [{"id": i, "file_name": name, "width": 20, "height": 10} for i, name in enumerate(NAMES, 1)]
    boxes = [
        {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (image, category, box) in enumerate(BOXES, 1)
    ]
    entry = make("pets", images=images, annotations=boxes)
    for name in NAMES[1:]:
        shutil.copyfile(f"{entry['images']}/a.png", f"{entry['images']}/{name}")
    return entry


@pytest.fixture
def sets(coco, tmp_path):
    """The entries of the same data set in three formats."""
    write_voc(coco, tmp_path / "voc")
    write_yolo(coco, tmp_path / "yolo")
    return [
        {"name": "as_coco", "coco": coco["json"], "images": coco["images"]},
        {"name": "as_voc", "voc": str(tmp_path / "voc"), "split": "train"},
        {"name": "as_yolo", "yolo": str(tmp_path / "yolo/data.yaml"), "split": "train"},
    ]
