"""Input files, names of pictures, categories and the JSON form of detections."""

import clq
import pytest
import torch
from clq.errors import UserError
from clq.inference.predictor import Categories, find_categories, find_images, picture_names, to_json
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances


def test_files_are_found_once_in_the_order_of_the_inputs(tmp_path):
    for name in ("b.png", "A.JPG", "c[1].png", "notes.txt", "raw.dat", "sub/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    inputs = ["raw.dat", "c[1].png", ".", "*b.png", "sub/*"]
    found = find_images([str(tmp_path / x) for x in inputs])
    # A file that is named is used whatever its suffix; a folder stands for its images, without its subfolders.
    assert [p.replace("/./", "/") for p in found] == [
        str(tmp_path / x) for x in ("raw.dat", "c[1].png", "A.JPG", "b.png", "sub/d.png")
    ]


@pytest.mark.parametrize("name", ["gone.png", "*.png", "sub"])
def test_an_input_that_names_no_file_is_refused(name, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match=f"{tmp_path}/") as e:
        find_images([str(tmp_path / "a.jpg"), str(tmp_path / name)])
    assert str(tmp_path / name) in str(e.value)


def test_picture_names_are_unique():
    paths = ["a/x.png", "b/x.png", "x_2.png", "c/X.png", "d/x.jpg", "e/x.raw", "f/x"]
    assert picture_names(paths) == ["x.png", "x_2.png", "x_2_2.png", "X_3.png", "x.jpg", "x.raw.png", "x_4.png"]


def detections():
    out = Instances((50, 60))
    out.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 11.0, 22.0]]))
    out.scores, out.pred_classes = torch.tensor([0.25]), torch.tensor([1])
    return out


def test_json_has_the_factors_of_the_score_under_the_name_of_the_quality_branch():
    categories = Categories((3, 7), ("blue", "red"))
    expected = {"image_id": 4, "file_name": "a.png", "category_id": 7, "category_name": "red"}
    expected |= {"bbox": [1, 2, 10, 20], "score": 0.25}
    assert to_json(detections(), categories, "none", image_id=4, file_name="a.png") == [expected]
    fields = {"iou": "predicted_iou", "centerness": "centerness", "task": "quality", "dgqp": "quality"}
    for quality_name, field in fields.items():
        found = detections()
        found.cls_scores, found.pred_quality = torch.tensor([0.5]), torch.tensor([0.75])
        more = {"cls_score": 0.5, field: 0.75}
        assert to_json(found, categories, quality_name, image_id=4, file_name="a.png") == [{**expected, **more}]


def test_categories_of_detectron2s_own_data_sets_need_no_file():
    cfg = clq.setup_cfg(None, ["DATASETS.TEST", "['coco_2017_val']", "MODEL.CLQ.NUM_CLASSES", 80])
    categories = find_categories(cfg)
    assert (categories.ids[11], categories.names[11]) == (13, "stop sign")  # COCO has no category 12
    assert categories.ids[-1] == 90 and len(categories.names) == 80
    assert MetadataCatalog.get("coco_2017_val").get("thing_classes")[11] == "stop sign"
