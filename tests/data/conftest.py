"""Shared by the tests of this folder: catalogs that are restored after each test, and a small data set on disk."""

import hashlib
import json

import clq  # noqa: F401  (first, because it makes Detectron2 importable)
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
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
