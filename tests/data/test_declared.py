"""The entries of DATASETS.SETS: what is registered of them, and the messages about mistakes."""

import clq
import pytest
from clq.data.declared import parse_sets
from clq.data.formats.source import Part
from clq.errors import UserError
from detectron2.data import DatasetCatalog

SHARES = {"train": 0.8, "val": 0.2, "seed": 1}


def test_paths_become_absolute_and_shares_become_data_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PETS", str(tmp_path / "pets"))
    entries = [
        {"name": "cats", "voc": "xml", "images": "~/img", "split": SHARES},
        {"name": "dogs", "yolo": "$PETS/data.yaml", "split": "train"},
        {"name": "cows", "coco": "cows.json"},
    ]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    sources, absolute = parse_sets(entries, 90.0)
    assert absolute == [
        {**entries[0], "voc": f"{tmp_path}/xml", "images": f"{tmp_path}/home/img"},
        {**entries[1], "yolo": f"{tmp_path}/pets/data.yaml"},
        {**entries[2], "coco": f"{tmp_path}/cows.json"},
    ]
    parts = [Part(part, (("train", 0.8), ("val", 0.2)), 1) for part in ("train", "val")]
    assert [(name, s.format, s.split, s.part) for name, s in sources] == [
        ("cats_train", "voc", None, parts[0]),
        ("cats_val", "voc", None, parts[1]),
        ("dogs", "yolo", "train", None),
        ("cows", "coco", None, None),
    ]
    assert [s.root for _, s in sources[1:]] == [f"{tmp_path}/home/img", f"{tmp_path}/pets", str(tmp_path)]


def test_parts_are_disjoint_complete_and_near_their_shares():
    shares = (("train", 0.7), ("val", 0.2), ("test", 0.1))  # their sum in floating point is less than 1
    names = [f"photo {i}.jpg" for i in range(2000)]
    held = {name: [n for n in names if Part(name, shares, seed=5).holds(n)] for name, _ in shares}
    assert sorted(n for part in held.values() for n in part) == sorted(names)
    for name, share in shares:
        assert abs(len(held[name]) - share * 2000) < 4 * (2000 * share * (1 - share)) ** 0.5
    assert held["val"] != [n for n in names if Part("val", shares, seed=6).holds(n)]
    assert sum(Part("val", (("val", 0.25),), 0).holds(n) for n in names) < 600  # the rest is in no part


@pytest.mark.parametrize(
    "entry, message",
    [
        ("cats", r"each entry must be \{name: NAME, coco\|voc\|yolo: PATH\}.*; got 'cats'"),
        ({"name": "x"}, "got name"),
        ({"name": "x", "voc": "a", "coco": "b"}, "got name, voc, coco"),
        ({"name": "x", "voc": "a", "json": "b"}, "got name, voc, json"),
        ({"name": "x", "voc": ""}, "voc must be a non-empty string; got ''"),
        ({"name": 3, "voc": "a"}, "name must be a non-empty string; got 3"),
        ({"name": "x", "voc": "a", "images": None}, "images must be a non-empty string; got None"),
        ({"name": "x", "voc": "a", "split": 3}, "split must be a non-empty string; got 3"),
        ({"name": "x", "voc": "a", "split": "../../etc/passwd"}, "it must be a name such as train"),
        ({"name": "x", "voc": "a", "split": ".."}, "it must be a name such as train"),
        ({"name": "x", "coco": "a", "split": "train"}, "a COCO json has no splits"),
        ({"name": "x", "voc": "a", "split": {}}, "write a name, or shares"),
        ({"name": "x", "voc": "a", "split": {"seed": 1}}, "write a name, or shares"),
        ({"name": "x", "voc": "a", "split": {"train": 0.9, "val": 0.2}}, "add up to at most 1"),
        ({"name": "x", "voc": "a", "split": {"train": 80, "val": 20}}, "add up to at most 1"),
        ({"name": "x", "voc": "a", "split": {"train": 0.9, "valid": 0.1}}, "of train, val and test"),
        ({"name": "x", "voc": "a", "split": {"train": 1, "val": 0}}, "of train, val and test"),
        ({"name": "x", "voc": "a", "split": {"train": float("nan")}}, "of train, val and test"),
        ({"name": "x", "voc": "a", "split": {"train": 0.9, "seed": 1.5}}, "seed 1.5 in its split"),
        ({"name": "x", "voc": "a", "names": ["a"]}, "has names, which only yolo takes"),
        ({"name": "x", "yolo": "a", "names": [1]}, "write the names of its classes"),
        ({"name": "x", "yolo": "a", "names": []}, "write the names of its classes"),
    ],
)
def test_a_wrong_entry_is_named_and_nothing_is_registered(entry, message):
    with pytest.raises(UserError, match=f"DATASETS.SETS: .*{message}"):
        clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", "DATASETS.SETS", [{"name": "good", "voc": "a"}, entry]])
    assert "good" not in DatasetCatalog


def test_a_name_cannot_be_given_twice():
    sets = [{"name": "twice", "voc": "a", "split": {"train": 1.0}}, {"name": "twice_train", "voc": "a"}]
    with pytest.raises(UserError, match=r"DATASETS.SETS: twice_train is given twice"):
        clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", "DATASETS.SETS", sets])


def test_overrides_are_written_as_in_a_file():
    opts = ["DATASETS.SETS", "[{name: on_the_line, voc: xml}]", "DATASETS.CLASSES", "[cat, dog]"]
    cfg = clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", *opts])
    assert cfg.DATASETS.SETS[0]["voc"].endswith("/xml") and cfg.DATASETS.CLASSES == ["cat", "dog"]
