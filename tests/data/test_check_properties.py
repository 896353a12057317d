"""Damaged annotations: the check of data sets accepts them or refuses them in one line."""

import json
import logging

import clq
import hypothesis
import pytest
from clq.data.checks import check_datasets
from fuzzing import accepting_or_refusing, damaged_bytes, damaged_tree
from hypothesis import strategies as st
from PIL import Image

POLYGON = [[1, 1, 11, 1, 11, 9, 1, 9]]
BOX = {"bbox": [1, 1, 10, 8], "area": 80, "iscrowd": 0, "segmentation": POLYGON, "keypoints": [3, 3, 2]}
CONTENT = {
    "info": {"year": 2026},
    "images": [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 12} for i in (1, 2)],
    "annotations": [{"id": i, "image_id": i, "category_id": 3 + i, **BOX} for i in (1, 2)],
    "categories": [{"id": 4, "name": "a", "supercategory": "x"}, {"id": 5, "name": "b"}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotations")
    for i in (1, 2):
        Image.new("RGB", (20, 12), (i, 90, 200)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def quiet():
    """The check logs what it accepts but finds odd, which would fill the report of ``make fuzz``."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def check(folder, content):
    (folder / "a.json").write_bytes(content)
    entry = {"name": "fuzzed", "json": str(folder / "a.json"), "images": str(folder)}
    opts = ["DATASETS.COCO_JSON", [entry], "DATASETS.TRAIN", ["fuzzed"], "DATASETS.TEST", ["fuzzed"]]
    with accepting_or_refusing():
        check_datasets(clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", *opts]))


@pytest.mark.fuzz
@hypothesis.given(content=damaged_bytes([json.dumps(CONTENT).encode(), json.dumps(CONTENT).encode("utf-8-sig")]))
def test_a_damaged_json(folder, content):
    check(folder, content)


@pytest.mark.fuzz
@hypothesis.given(tree=damaged_tree(CONTENT), ascii_only=st.booleans())
def test_odd_values_in_a_json(folder, tree, ascii_only):
    check(folder, json.dumps(tree, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))
