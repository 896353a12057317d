"""Shared by the tests of this folder: records without files, configs, and a data set with planted mistakes."""

import json

import clq
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

WIDTH, HEIGHT = 160, 120


def make_record(boxes, size=(HEIGHT, WIDTH), name="a.png", classes=None):
    """A record in Detectron2's format with XYXY boxes."""
    classes = classes or [0] * len(boxes)
    annotations = [
        {"bbox": list(b), "bbox_mode": BoxMode.XYXY_ABS, "category_id": c, "iscrowd": 0}
        for b, c in zip(boxes, classes, strict=True)
    ]
    return {"file_name": name, "image_id": name, "height": size[0], "width": size[1], "annotations": annotations}


@pytest.fixture(scope="session")
def record():
    """:func:`make_record`."""
    return make_record


@pytest.fixture
def config():
    """``config(KEY, VALUE, ...)``: CLQ with ResNet-50 at short side 800, on the CPU."""

    def make(*opts, name="CLQ/clq_R_50_FPN_1x"):
        return clq.setup_cfg(name, ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (), "DATASETS.TEST", (), *opts])

    return make


@pytest.fixture
def planted(tmp_path):
    """``{name, json, images}`` of images with one planted mistake each; annotation ids count from 101."""
    (tmp_path / "images").mkdir()
    per_image = [
        [(1, [10, 10, 40, 40]), (1, [10, 11, 40, 40]), (2, [90, 60, 40, 30])],  # 101 to 103: a duplicate
        [(1, [10, 10, 40, 40]), (2, [10, 10, 40, 41])],  # 104, 105: two classes
        [(1, [10, 10, 3, 2]), (2, [60, 50, 30, 30])],  # 106, 107: tiny
        [(1, [140, 50, 60, 30]), (2, [200, 50, 30, 30]), (1, [20, 20, 30, 30])],  # 108 beyond, 109 outside, 110 good
        [(1, [0, 0, 160, 119])],  # 111: huge
        [(1, [10, 60, 140, 6])],  # 112: thin
        [(1, [30, 30, 25, 25])],  # 113: good
    ]
    images, annotations = [], []
    for i, boxes in enumerate(per_image, 1):
        pixels = np.random.default_rng(i).integers(60, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT})
        for category, box in boxes:
            box = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "category_id": category, "image_id": i}
            annotations.append({"id": 101 + len(annotations), **box})
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (tmp_path / "planted.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    files = {"json": str(tmp_path / "planted.json"), "images": str(tmp_path / "images")}
    yield {"name": "planted", **files}
    if "planted" in DatasetCatalog:
        DatasetCatalog.remove("planted")
        MetadataCatalog.remove("planted")
