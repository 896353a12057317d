"""Data sets of DATASETS.SETS as training, checks and evaluation see them: the format makes no difference."""

import json
import os
import random
from pathlib import Path

import clq
import pytest
import torch
import yaml
from clq.data.checks import check_datasets
from clq.data.datasets import _stamp, class_names, summary_of
from clq.data.formats import readers
from clq.data.formats.findings import Findings
from clq.data.left_out import left_out_images
from clq.errors import UserError
from clq.evaluation.coco import BoxEvaluator
from detectron2.data import DatasetCatalog, MetadataCatalog
from other_formats import write_voc, write_yolo
from safetensors.torch import load_file

NAMES = ["a.png", "b.png", "c.png"]


def config(sets, *opts, train=(), test=()):
    train = train or [entry["name"] for entry in sets]
    data = ["DATASETS.SETS", sets, "DATASETS.TRAIN", list(train), "DATASETS.TEST", list(test)]
    return clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", *data, *opts])


SKIP = ("DATASETS.ON_ERROR", "skip")


def records(name):
    """The records of a data set without what depends on where it is."""
    return [{**r, "file_name": os.path.basename(r["file_name"])} for r in DatasetCatalog.get(name)]


@pytest.mark.parametrize("classes", [[], ["cat", "dog"], ["dog", "cat"], ["dog"]])
def test_records_and_classes_are_the_same_in_all_formats(coco, sets, classes):
    cfg = config(sets, "DATASETS.CLASSES", classes)
    check_datasets(cfg)
    names = classes or ["cat", "dog"]  # by category id, which in xml is the order of the alphabet
    for name in ("as_coco", "as_voc", "as_yolo"):
        assert class_names(name) == names
        assert records(name) == records("as_coco")
        assert all(os.path.isfile(record["file_name"]) for record in DatasetCatalog.get(name))
    assert sum(len(r["annotations"]) for r in records("as_voc")) == (2 if classes == ["dog"] else 4)


def test_parts_are_the_same_in_all_formats_and_leave_the_rest_out(sets):
    shares = {"train": 0.5, "val": 0.5, "seed": 2}
    for entry in sets:
        entry["split"] = shares
    sets[2] = {**sets[2], "yolo": os.path.dirname(sets[2]["yolo"]), "names": ["cat", "dog"]}
    config(sets, train=["as_voc_train"])
    for part in ("train", "val"):
        found = [[r["file_name"] for r in records(f"{entry['name']}_{part}")] for entry in sets]
        assert found[0] == found[1] == found[2] != []
    names = [[r["file_name"] for r in records(f"as_coco_{part}")] for part in ("train", "val")]
    assert sorted(names[0] + names[1]) == NAMES
    assert MetadataCatalog.get("as_coco_val").get("json_file") is None  # it is not the whole json


def test_the_order_in_which_a_folder_lists_its_files_does_not_matter(sets, monkeypatch):
    config(sets)
    before = {entry["name"]: (records(entry["name"]), _stamp(entry["name"])) for entry in sets}
    scandir = os.scandir

    class Shuffled(list):
        __enter__, __exit__ = (lambda self: self), (lambda self, *_: None)

    def shuffled(path):
        with scandir(path) as entries:
            found = list(entries)
        random.Random(1).shuffle(found)
        return Shuffled(found)

    monkeypatch.setattr(os, "scandir", shuffled)
    assert {name: (records(name), _stamp(name)) for name in before} == before


@pytest.mark.parametrize(
    "name, changed",
    [
        ("as_voc", "voc/Annotations/b.xml"),
        ("as_voc", "voc/ImageSets/Main/train.txt"),
        ("as_yolo", "yolo/labels/b.txt"),
        ("as_yolo", "yolo/train.txt"),
        ("as_yolo", "yolo/data.yaml"),
        ("as_yolo", "pets_images/b.png"),
        ("as_coco", "pets.json"),
    ],
)
def test_a_summary_is_remembered_until_one_of_its_files_changes(sets, tmp_path, monkeypatch, name, changed):
    config(sets)
    reads = []
    for reader in ("read_voc", "read_yolo", "read_coco_json"):
        read = getattr(readers, reader)
        monkeypatch.setattr(readers, reader, lambda *a, read=read, **k: reads.append(a) or read(*a, **k))
    first = summary_of(name, Findings(name))
    assert summary_of(name, Findings(name)) == first and len(reads) == 1
    assert class_names(name) == ["cat", "dog"] and len(reads) == 1
    status = os.stat(tmp_path / changed)
    os.utime(tmp_path / changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert summary_of(name, Findings(name)) == first and len(reads) == 2


@pytest.mark.parametrize("name, path", [("as_voc", "voc/Annotations/b.xml"), ("as_yolo", "yolo/labels/b.txt")])
def test_removed_and_new_files_are_noticed(sets, tmp_path, name, path):
    config(sets, train=[name])
    assert summary_of(name, Findings(name)).found == [2, 1, 1]
    content = (tmp_path / path).read_bytes()
    (tmp_path / path).unlink()
    assert sum(summary_of(name, Findings(name, skip=True)).found) == 3
    (tmp_path / path).write_bytes(content)
    assert summary_of(name, Findings(name)).found == [2, 1, 1]


def test_faults_are_refused_or_left_out_as_in_json(sets, tmp_path):
    xml, text = tmp_path / "voc/Annotations/b.xml", tmp_path / "yolo/labels/b.txt"
    xml.write_text(xml.read_text().replace("<xmin>1<", "<xmin>one<"))
    text.write_text("9 .5 .5 1 1\n0 .5 .5 1 1\n0 .5 .5 0 1\n")
    for name, where in (("as_voc", f"{xml}: object 1 has xmin 'one'"), ("as_yolo", f"{text}: line 1 has class 9")):
        with pytest.raises(UserError) as e:
            check_datasets(config(sets, train=[name]))
        assert str(e.value).startswith(f"data set {name}: {where}")
        assert "set DATASETS.ON_ERROR skip" in str(e.value)
    left_out = check_datasets(config(sets, *SKIP, train=["as_voc", "as_yolo"]))
    assert [e.annotation for e in left_out] == [f"{xml}: object 1", f"{text}: line 1", f"{text}: line 3"]
    assert left_out[2].reason.startswith(f"{text}: line 3 has bbox [10.0, 0.0, 0.0, 10.0]")
    assert all(os.path.isfile(e.image) for e in left_out)
    assert [len(r["annotations"]) for r in records("as_voc")] == [2, 0, 1]


def test_an_xml_with_another_size_than_its_image_is_refused_also_when_it_is_remembered(sets, tmp_path):
    xml = tmp_path / "voc/Annotations/b.xml"
    xml.write_text(xml.read_text().replace("<width>20<", "<width>21<"))
    for _ in range(2):
        with pytest.raises(UserError, match=r"b.png is 20 x 10 pixels .*, but has width and height 21 x 10 in its xml"):
            check_datasets(config(sets, train=["as_voc"]))


def test_an_image_that_cannot_be_opened_is_left_out_with_its_labels(sets, tmp_path):
    (tmp_path / "pets_images/b.png").write_bytes(b"no image")
    cfg = config(sets, *SKIP, train=["as_voc", "as_yolo"])
    assert [os.path.basename(e.image) for e in check_datasets(cfg)] == ["b.png", "b.png"]
    assert [os.path.basename(path) for path, _ in left_out_images("as_voc")] == ["b.png"]
    assert [r["file_name"] for r in records("as_yolo")] == ["a.png", "c.png"]


def test_evaluation_writes_the_truth_of_a_set_that_has_no_json(sets, tmp_path):
    config(sets, "DATASETS.CLASSES", ["dog", "cat"])
    for name in ("as_coco", "as_voc", "as_yolo"):
        folder = tmp_path / name
        options = {"left_out_folder": str(tmp_path), "max_dets_per_image": 100, "use_fast_impl": False}
        evaluator = BoxEvaluator(name, str(folder), **options)
        evaluator.reset()
        evaluator._predictions = [
            {
                "image_id": r["image_id"],
                "instances": [
                    {"image_id": r["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
                    for a in r["annotations"]
                    if a["category_id"] == 0
                ],
            }
            for r in DatasetCatalog.get(name)
        ]
        metrics = evaluator.evaluate()["bbox"]
        assert metrics["AP-dog"] == pytest.approx(100) and metrics["AP-cat"] == 0
        truth = json.loads((folder / "annotations.json").read_text())
        assert [c["name"] for c in truth["categories"]] == ["dog", "cat"] and len(truth["annotations"]) == 4


def test_a_saved_config_works_in_another_folder(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = [{**sets[1], "voc": "voc", "images": "pets_images"}]
    (tmp_path / "saved.yaml").write_text(config(sets).dump())
    monkeypatch.chdir("/")
    (entry,) = clq.setup_cfg(str(tmp_path / "saved.yaml")).DATASETS.SETS
    assert entry == {**sets[0], "voc": f"{tmp_path}/voc", "images": f"{tmp_path}/pets_images"}
    assert len(records("as_voc")) == 3


def test_masks_come_from_polygons_of_yolo(sets, tmp_path):
    for name in "abc":
        (tmp_path / f"yolo/labels/{name}.txt").write_text("0 .1 .1 .5 .1 .5 .5\n")
    masks = ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.MASK_ON", True)
    check_datasets(config(sets, *masks, train=["as_yolo"]))
    assert DatasetCatalog.get("as_yolo")[0]["annotations"][0]["segmentation"] == [[2.0, 1.0, 10.0, 1.0, 10.0, 5.0]]
    with pytest.raises(UserError, match=r"a.xml: object 1 has segmentation null; MODEL.MASK_ON needs"):
        check_datasets(config(sets, *masks, train=["as_voc"]))


def sorted_by_name(entry, path):
    """A data set whose ids are in the order of the file names, as readers of other formats number images."""
    data = json.loads(Path(entry["json"]).read_text())
    names = sorted(image["file_name"] for image in data["images"])
    ids = {image["id"]: names.index(image["file_name"]) + 1 for image in data["images"]}
    images = [{**image, "id": ids[image["id"]]} for image in data["images"]]
    annotations = [{**a, "image_id": ids[a["image_id"]]} for a in data["annotations"]]
    path.write_text(json.dumps({**data, "images": images, "annotations": annotations}))
    return {"name": "shapes_sorted", "json": str(path), "images": entry["images"]}


def test_all_formats_train_to_the_same_weights(tiny, run, tmp_path):
    settings = yaml.safe_load(Path(tiny).read_text())
    coco = sorted_by_name(settings["DATASETS"]["COCO_JSON"][0], tmp_path / "sorted.json")
    write_voc(coco, tmp_path / "voc")
    write_yolo(coco, tmp_path / "yolo")
    settings["DATASETS"] |= {
        "COCO_JSON": [coco],
        "SETS": [
            {"name": "shapes_voc", "voc": str(tmp_path / "voc"), "split": "train"},
            {"name": "shapes_yolo", "yolo": str(tmp_path / "yolo"), "split": "train"},
        ],
        "CLASSES": ["red", "blue"],
        "TEST": [],
    }
    settings["SOLVER"]["MAX_ITER"] = 2
    (tmp_path / "formats.yaml").write_text(yaml.safe_dump(settings))
    weights = []
    for name in (coco["name"], "shapes_voc", "shapes_yolo"):
        opts = ["DATASETS.TRAIN", f"['{name}']", "OUTPUT_DIR", tmp_path / name]
        assert run("train_net.py", "--config-file", tmp_path / "formats.yaml", *opts) == 0
        weights.append(load_file(tmp_path / name / "model_final.safetensors"))
    for key, value in weights[0].items():
        assert torch.equal(weights[1][key], value) and torch.equal(weights[2][key], value)
