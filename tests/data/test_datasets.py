"""Registration of data sets, their class names, the number of classes, and the messages about mistakes."""

import pytest
from clq.config import setup_cfg
from clq.data.datasets import class_names, fill_num_classes, register_coco_json, resolve_num_classes
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


def config(train, num_classes, entries=()):
    opts = {"COCO_JSON": list(entries), "TRAIN": train}
    opts = [word for key, value in opts.items() for word in (f"DATASETS.{key}", repr(value))]
    return setup_cfg(None, [*opts, "MODEL.META_ARCHITECTURE", "CLQ", "MODEL.CLQ.NUM_CLASSES", str(num_classes)])


def test_number_of_classes_comes_from_the_training_set(make):
    entry = make("pets")
    assert resolve_num_classes(config(("pets",), -1, [entry])) == 2
    assert resolve_num_classes(config(("pets",), 2, [entry])) == 2
    assert resolve_num_classes(config(("coco_2017_train",), -1)) == 80  # from the metadata; the files do not exist


def test_an_explicit_number_is_used_if_the_training_set_cannot_be_read():
    assert resolve_num_classes(config((), 4)) == 4
    assert resolve_num_classes(config(("elsewhere",), 4)) == 4


@pytest.mark.parametrize(
    "train, num_classes, message",
    [
        (("coco_2017_train",), 79, "NUM_CLASSES is 79 but data set coco_2017_train has 80 classes; set it to -1 or 80"),
        ((), -1, "NUM_CLASSES is -1 and DATASETS.TRAIN is empty; set either"),
        (("elsewhere",), -1, "NUM_CLASSES is -1, .*no data set elsewhere"),
        ((), 0, "NUM_CLASSES 0: must be at least 1, or -1"),
    ],
)
def test_wrong_numbers_of_classes_are_refused(train, num_classes, message):
    with pytest.raises(UserError, match=message):
        resolve_num_classes(config(train, num_classes))


@pytest.mark.parametrize(
    "architecture, key", [("RetinaNet", "RETINANET"), ("FCOS", "RETINANET"), ("GeneralizedRCNN", "ROI_HEADS")]
)
def test_detectron2s_own_models_read_the_number_from_their_own_key(architecture, key):
    key = f"MODEL.{key}.NUM_CLASSES"
    opts = ["MODEL.META_ARCHITECTURE", architecture, "DATASETS.TRAIN", ["coco_2017_train"], "MODEL.CLQ.NUM_CLASSES", 3]
    cfg = setup_cfg(None, ["MODEL.DEVICE", "cpu", *opts, key, -1])
    fill_num_classes(cfg)
    assert cfg.MODEL[key.split(".")[1]].NUM_CLASSES == resolve_num_classes(cfg) == 80
    assert cfg.MODEL.CLQ.NUM_CLASSES == 3
    with pytest.raises(UserError, match=rf"^{key} is 79 but data set coco_2017_train has 80 classes"):
        fill_num_classes(setup_cfg(None, [*opts, key, 79]))
