"""Registration of data sets, their class names, and the messages about mistakes."""

import pytest
from clq.data.datasets import class_names, register_coco_json
from clq.errors import UserError
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator


def test_registered_data_set_loads_with_contiguous_classes_in_order_of_id(make, tmp_path):
    register_coco_json([make("pets")])
    assert class_names("pets") == ["cat", "dog"]
    (record,) = DatasetCatalog.get("pets")
    assert record["file_name"] == str(tmp_path / "pets_images" / "a.png")
    assert [(a["category_id"], a["bbox"]) for a in record["annotations"]] == [(1, [1, 2, 3, 4])]  # dog, id 7


def test_registering_expands_paths_and_reads_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PETS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    register_coco_json(
        [
            {"name": "later", "json": "$PETS/later.json", "images": "~/pictures"},
            {"name": "relative", "json": "relative.json", "images": "pictures"},
        ]
    )
    monkeypatch.chdir("/")
    later, relative = MetadataCatalog.get("later"), MetadataCatalog.get("relative")
    assert (later.json_file, later.image_root) == (f"{tmp_path}/later.json", f"{tmp_path}/home/pictures")
    assert (relative.json_file, relative.image_root) == (f"{tmp_path}/relative.json", f"{tmp_path}/pictures")


def test_registering_again_keeps_metadata_unless_the_paths_change(make):
    entry = make("pets")
    register_coco_json([entry])
    DatasetCatalog.get("pets")  # adds the class names to the metadata, which the evaluator needs later
    register_coco_json([entry])
    assert MetadataCatalog.get("pets").thing_classes == ["cat", "dog"]
    other = make("other", categories=((1, "bird"),))
    register_coco_json([{**other, "name": "pets"}])
    assert class_names("pets") == ["bird"]
    assert len(DatasetCatalog.get("pets")) == 1


def test_evaluator_reads_the_current_json(make, tmp_path):
    register_coco_json([make("pets")])
    COCOEvaluator("pets", output_dir=str(tmp_path / "out"))
    make("pets", categories=((3, "cat"), (7, "dog"), (9, "emu")))
    evaluator = COCOEvaluator("pets", output_dir=str(tmp_path / "out"))
    assert sorted(evaluator._coco_api.cats) == [3, 7, 9]


def test_class_names_are_those_of_the_current_json(make):
    register_coco_json([make("pets")])
    assert class_names("pets") == ["cat", "dog"]
    make("pets", categories=((1, "bird"),))
    assert class_names("pets") == ["bird"]


@pytest.mark.parametrize(
    "entries, message",
    [
        (
            [{"name": "coco_2017_val", "json": "a", "images": "b"}],
            "coco_2017_val is a data set that Detectron2 already",
        ),
        ([{"name": "x", "json": "a"}], "exactly the keys name, json and images; got name, json"),
        ([{"name": "x", "json": "a", "images": "b", "root": "c"}], "got name, json, images, root"),
        (["x"], "got 'x'"),
        ([{"name": "x", "json": "", "images": "b"}], "json must be a non-empty string; got ''"),
        ([{"name": "x", "json": "a", "images": "b"}, {"name": "x", "json": "c", "images": "b"}], "x is given twice"),
    ],
)
def test_bad_entries_are_refused_and_nothing_is_registered(entries, message):
    with pytest.raises(UserError, match=message):
        register_coco_json([{"name": "fine", "json": "a", "images": "b"}, *entries])
    assert "fine" not in DatasetCatalog


def test_unreadable_data_sets_are_refused(make, tmp_path):
    entry = make("pets_train")
    register_coco_json([entry])
    with pytest.raises(UserError, match=r"no data set pets_trian; did you mean pets_train.*DATASETS.COCO_JSON"):
        class_names("pets_trian")
    for content, message in [("{oops", "pets_train.json: is not valid json"), ("{}", "has no categories")]:
        (tmp_path / "pets_train.json").write_text(content)
        with pytest.raises(UserError, match=message):
            class_names("pets_train")
    (tmp_path / "pets_train_images" / "a.png").unlink()
    (tmp_path / "pets_train_images").rmdir()
    with pytest.raises(UserError, match=f"image folder {tmp_path}/pets_train_images does not exist"):
        class_names("pets_train")
    (tmp_path / "pets_train.json").unlink()
    with pytest.raises(UserError, match=f"json {tmp_path}/pets_train.json does not exist"):
        class_names("pets_train")


def test_a_data_set_registered_in_code_may_define_its_classes_when_it_is_loaded():
    def load():
        MetadataCatalog.get("by_code").thing_classes = ["a", "b"]
        return []

    DatasetCatalog.register("by_code", load)
    assert class_names("by_code") == ["a", "b"]
