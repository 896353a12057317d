"""Input files, names of pictures, and categories."""

import clq
import pytest
from clq.data.categories import find_categories
from clq.errors import UserError
from clq.inference.predictor import find_images, picture_names
from detectron2.data import MetadataCatalog


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


def test_categories_of_detectron2s_own_data_sets_need_no_file():
    cfg = clq.setup_cfg(None, ["DATASETS.TEST", "['coco_2017_val']", "MODEL.CLQ.NUM_CLASSES", 80])
    categories = find_categories(cfg)
    assert (categories.ids[11], categories.names[11]) == (13, "stop sign")  # COCO has no category 12
    assert categories.ids[-1] == 90 and len(categories.names) == 80
    assert MetadataCatalog.get("coco_2017_val").get("thing_classes")[11] == "stop sign"
