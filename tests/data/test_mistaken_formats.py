"""A path that is not of the format that a config says is told apart."""

import clq
import pytest
from clq.data.datasets import class_names, summary_of
from clq.data.formats.findings import Findings
from clq.errors import UserError
from detectron2.data import DatasetCatalog


@pytest.mark.parametrize(
    "form, path, message",
    [
        ("coco", "voc", "is a folder that looks like a folder of Pascal VOC xml, not a json file.*; name it under voc"),
        ("coco", "yolo", "looks like a YOLO data set, not a json file in COCO format; name it under yolo"),
        ("coco", "voc/Annotations/a.xml", "is one Pascal VOC xml, not a json file in COCO format; name its folder"),
        ("coco", "yolo/data.yaml", "looks like a YOLO data set, not a json file in COCO format; name it under yolo"),
        ("coco", "yolo/labels/a.txt", "is not valid json"),
        ("coco", "pets_images", "is a folder, but coco needs a json file"),
        ("coco", "gone.json", "its json .*/gone.json does not exist; put it there or correct DATASETS.SETS"),
        (
            "voc",
            "pets.json",
            "looks like a json file in COCO format, not a folder of Pascal VOC xml; name it under coco",
        ),
        ("voc", "yolo/data.yaml", "looks like a YOLO data set, not a folder of Pascal VOC xml; name it under yolo"),
        ("voc", "voc/Annotations/a.xml", "is a file, but voc needs the folder of its xml files"),
        ("voc", "yolo", "looks like a YOLO data set, not a folder of Pascal VOC xml; name it under yolo"),
        ("voc", "jsons", "is a folder, not a folder of Pascal VOC xml; name each json under coco"),
        ("voc", "gone", "its folder .*/gone does not exist"),
        ("yolo", "pets.json", "looks like a json file in COCO format, not a YOLO data set; name it under coco"),
        ("yolo", "voc", "looks like a folder of Pascal VOC xml, not a YOLO data set; name it under voc"),
        ("yolo", "voc/Annotations", "looks like a folder of Pascal VOC xml, not a YOLO data set; name it under voc"),
        ("yolo", "yolo/labels/a.txt", "is a file, but yolo needs a data.yaml, or a folder"),
        ("yolo", "empty", "is a folder, but yolo needs a data.yaml, or a folder"),
        ("yolo", "gone", "its folder or data.yaml .*/gone does not exist"),
    ],
)
def test_a_path_of_another_format_is_told_apart(sets, tmp_path, form, path, message):
    for folder in ("empty", "jsons"):
        (tmp_path / folder).mkdir()
    (tmp_path / "jsons/train.json").write_text("{}")
    clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", "DATASETS.SETS", [{"name": "odd", form: str(tmp_path / path)}]])
    for use in (class_names, DatasetCatalog.get, lambda name: summary_of(name, Findings(name))):
        with pytest.raises(UserError, match=f"data set odd: .*({message})"):
            use("odd")


def test_xml_given_as_json_in_coco_json_is_told_apart(sets, tmp_path):
    entry = {"name": "odd", "json": str(tmp_path / "voc/Annotations/a.xml"), "images": str(tmp_path)}
    clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", "DATASETS.COCO_JSON", [entry]])
    with pytest.raises(UserError, match="is one Pascal VOC xml, not a json file in COCO format; name its folder under"):
        class_names("odd")
