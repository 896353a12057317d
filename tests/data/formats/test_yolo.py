"""YOLO: what is read of label files, data.yaml and folders, and what is reported."""

import os

import pytest
from clq.data.formats.findings import Findings
from clq.data.formats.source import Part, Source
from clq.data.formats.yolo import parse_line, read_yolo, to_pixels
from clq.errors import UserError
from PIL import Image


def write(folder, labels, images="images", texts="labels"):
    """Writes images of 200 x 100 pixels with their label files; a text of None is no file."""
    for name, text in labels.items():
        (folder / images).mkdir(parents=True, exist_ok=True)
        (folder / texts).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 100)).save(folder / images / f"{name}.png")
        if text is not None:
            (folder / texts / f"{name}.txt").write_text(text)
    return folder


def read(path, *, skip=True, **source):
    findings = Findings("pets", skip)
    return read_yolo(Source("yolo", str(path), **source), findings), findings


def names(data):
    return [image["file_name"] for image in data["images"]]


def test_boxes_are_centers_and_sizes_in_fractions_and_polygons_give_their_box(tmp_path):
    text = "1 0.5 0.5 0.25 0.5\n0 0.1 0.2 0.3 0.2 0.3 0.6\n\n1.0e+00 .25 .5 .5 1\n"
    data, findings = read(write(tmp_path, {"a": text, "b": ""}), names=("ant", "bee"))
    assert data["images"][0] == {"id": 1, "file_name": "images/a.png", "width": 200, "height": 100}
    assert data["categories"] == [{"id": 0, "name": "ant"}, {"id": 1, "name": "bee"}]
    # (0.5 - 0.125) * 200 = 75, (0.5 - 0.25) * 100 = 25; the polygon has corners (20, 20), (60, 20) and (60, 60)
    expected = [(1, [75, 25, 50, 50]), (0, [20, 20, 40, 40]), (1, [0, 0, 100, 100])]
    assert [(a["category_id"], a["bbox"]) for a in data["annotations"]] == expected
    assert [a.get("segmentation") for a in data["annotations"]] == [None, [[20, 20, 60, 20, 60, 60]], None]
    assert [a["area"] for a in data["annotations"]] == [2500, 1600, 10000]
    assert names(data) == ["images/a.png", "images/b.png"] and not findings.faults and not findings.notes


def test_whole_pixels_written_with_six_digits_are_read_exactly():
    for x, y, w, h in [(1, 2, 3, 5), (639, 479, 1, 1), (0, 0, 640, 480), (333, 111, 77, 211)]:
        values = [(x + w / 2) / 640, (y + h / 2) / 480, w / 640, h / 480]
        assert to_pixels([float(f"{v:.6f}") for v in values], 640, 480) == ([x, y, w, h], None)


@pytest.mark.parametrize(
    "line, message",
    [
        ("0 .5 .5 .5", "has 4 values; a box has 5"),
        ("0 .5 .5 .5 .5 .9", "has 6 values, as if its last one were a confidence"),
        ("0 .1 .1 .2 .1 .2 .2 .9", "has 8 values; a box has 5"),
        ("cat .5 .5 .5 .5", "has class 'cat' (text); it must be an integer"),
        ("0.5 .5 .5 .5 .5", "has class '0.5'"),
        ("inf .5 .5 .5 .5", "has class 'inf'"),
        ("2 .5 .5 .5 .5", "has class 2, but there are names for 2 classes, from 0 on"),
        ("-1 .5 .5 .5 .5", "has class -1"),
        ("0 nan .5 .5 .5", "has coordinate 'nan' (text); it must be a fraction of the image, between 0 and 1"),
        ("0 120 .5 .5 .5", "has coordinate '120'"),
        ("0 .5 .5 -.005 .5", "has a box of negative size, -.005 x .5"),
    ],
)
def test_a_faulty_line_is_named_and_left_out_alone(tmp_path, line, message):
    folder = write(tmp_path, {"a": f"1 .5 .5 1 1\n{line}\n0 .5 .5 1 1\n"})
    data, findings = read(folder, names=("ant", "bee"))
    assert [a["category_id"] for a in data["annotations"]] == [1, 0]
    (left_out,) = findings.left_out
    assert left_out.reason.startswith(f"{tmp_path}/labels/a.txt: line 2 {message}")
    assert (left_out.image, left_out.annotation) == ("images/a.png", f"{tmp_path}/labels/a.txt: line 2")


def test_keypoints_after_a_box_are_not_used():
    line = ["0", ".5", ".5", ".2", ".2", ".1", ".1", ".9", ".9"]
    assert parse_line(line, 1, keypoint_values=4) == (0, [0.5, 0.5, 0.2, 0.2])
    assert parse_line(line, 1) == (0, [0.5, 0.5, 0.2, 0.2, 0.1, 0.1, 0.9, 0.9])  # a polygon of four corners


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\xff\xfe0", "cannot be read"),
        (b" " * (9 << 20), "it has more than 8 MiB"),
        (b"0\n" * 100_001, "100001 lines"),
    ],
)
def test_a_label_file_that_cannot_be_read_leaves_its_image_out(tmp_path, content, message):
    folder = write(tmp_path, {"a": "", "b": ""})
    (tmp_path / "labels/a.txt").write_bytes(content)
    data, findings = read(folder, names=("ant",))
    assert names(data) == ["images/b.png"]
    (left_out,) = findings.left_out
    assert left_out.reason.startswith(f"{tmp_path}/labels/a.txt: cannot be read") and message in left_out.reason


def test_images_without_labels_labels_without_images_and_damaged_images_are_reported(tmp_path):
    folder = write(tmp_path, {"a": "", "b": None, "c": ""})
    (tmp_path / "labels/d.txt").write_text("")
    (tmp_path / "images/c.png").write_bytes(b"no image")
    (tmp_path / "images/e.heic").write_bytes(b"\0\0\0\x18ftypheic")
    data, findings = read(folder, names=("ant",))
    assert names(data) == ["images/a.png", "images/b.png"]
    assert findings.notes["images have no label file, and count as images without objects"].first.endswith("/b.png")
    assert findings.notes["label files have no image, and are not used"].first == f"{tmp_path}/labels/d.txt"
    assert [left_out.image for left_out in findings.left_out] == ["images/c.png", "images/e.heic"]
    assert "HEIC" in findings.left_out[1].reason


DATA_YAML = "path: ../{name}\ntrain: images/train\nval: [images/val]\ntest:\nnc: 2\nnames:\n  0: ant\n  1: bee\n"


def test_a_data_yaml_as_ultralytics_writes_it(tmp_path):
    write(tmp_path, {"a": "0 .5 .5 1 1", "b": ""}, "images/train", "labels/train")
    write(tmp_path, {"c": "1 .5 .5 1 1"}, "images/val", "labels/val")
    path = tmp_path / "data.yaml"
    path.write_text(DATA_YAML.format(name=tmp_path.name))
    for given in (path, tmp_path):
        data, _ = read(given, split="val")
        assert names(data) == ["images/val/c.png"] and data["annotations"][0]["category_id"] == 1
        assert [c["name"] for c in data["categories"]] == ["ant", "bee"]
    assert names(read(path, split="train")[0]) == ["images/train/a.png", "images/train/b.png"]
    with pytest.raises(UserError, match=r"has no split test; it has train, val\."):
        read(path, split="test")
    with pytest.raises(UserError, match="has the splits train, val; name one with split: train"):
        read(path)


def test_a_data_yaml_as_roboflow_writes_it_and_one_that_lists_images(tmp_path):
    write(tmp_path, {"a": "0 .5 .5 1 1"}, "train/images", "train/labels")
    (tmp_path / "data.yaml").write_text("names: [ant, 7]\ntrain: ../train/images\nval: list.txt\n")
    (tmp_path / "list.txt").write_text("./train/images/a.png\n\ntrain/images/gone.png\n")
    data, findings = read(tmp_path, split="train")
    assert names(data) == ["train/images/a.png"] and [c["name"] for c in data["categories"]] == ["ant", "7"]
    data, findings = read(tmp_path, split="val")
    assert names(data) == ["train/images/a.png"] and len(data["annotations"]) == 1
    assert [left_out.image for left_out in findings.left_out] == ["train/images/gone.png"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("train: images", "has no names"),
        ("names: [a]\n", "has no images; name them under train or val"),
        ("names: [a]\nnc: 2\ntrain: images", "has nc 2, but 1 names"),
        ("names: {0: a, 2: b}\ntrain: images", "they must be a list, or a mapping from 0, 1, ... to names"),
        ("names: [yes, no]\ntrain: images", "has the name true of a class; write it in quotes"),
        ("names: [a]\ntrain: images\npath: nowhere", "has path 'nowhere' (text), a folder that does not exist"),
        ("names: [a]\ntrain: pictures", "/pictures does not exist"),
        ("names: [a]\ntrain: 5", "has [5] (a list) for the images of its split"),
        ("names: [a]\ntrain: images\nkpt_shape: 3", "has kpt_shape 3"),
        ("a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
         "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]", "more than"),
        ("names: [a", "cannot be read"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
        ("2020-13-45", "cannot be read"),
    ],
)  # fmt: skip
def test_a_data_yaml_that_cannot_be_used_is_named(tmp_path, text, message):
    write(tmp_path, {"a": "0 .5 .5 1 1"})
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError) as e:
        read(tmp_path / "data.yaml")
    assert str(e.value).startswith(f"data set pets: {tmp_path}/data.yaml") and message in str(e.value)


def test_folders_with_classes_txt_have_splits_as_subfolders(tmp_path):
    write(tmp_path / "flat", {"a": "0 .5 .5 1 1"}, ".", ".")  # as labelImg writes them
    (tmp_path / "flat/classes.txt").write_text("ant\nbee\n")
    data, findings = read(tmp_path / "flat")
    assert names(data) == ["a.png"] and [c["name"] for c in data["categories"]] == ["ant", "bee"]
    assert not findings.notes
    write(tmp_path / "sub", {"a": "0 .5 .5 1 1"}, "images/train", "labels/train")
    write(tmp_path / "sub", {"b": "0 .5 .5 1 1"}, "images/val", "labels/val")
    assert names(read(tmp_path / "sub", split="val", names=("x",))[0]) == ["images/val/b.png"]
    assert len(names(read(tmp_path / "sub", names=("x",))[0])) == 2
    write(tmp_path / "own", {"c": "0 .5 .5 1 1"}, "val/images", "val/labels")
    assert names(read(tmp_path / "own", split="val", names=("x",))[0]) == ["val/images/c.png"]
    with pytest.raises(UserError, match=r"split test needs the folder .*images/test, which does not exist"):
        read(tmp_path / "sub", split="test", names=("x",))
    with pytest.raises(UserError, match=r"the classes in .* have no names; write names"):
        read(tmp_path / "sub")
    (tmp_path / "flat/classes.txt").write_text("ant\n\nbee\n")
    with pytest.raises(UserError, match=r"classes.txt has an empty line"):
        read(tmp_path / "flat")


def test_images_none_of_which_has_a_label_file_are_refused(tmp_path):
    folder = write(tmp_path, {"a": None, "b": None})
    with pytest.raises(UserError, match=r"none of its 2 images has a label file; .*/labels/a.txt"):
        read(folder, names=("ant",))


def test_a_random_part_holds_the_same_images_as_of_other_formats(tmp_path):
    folder = write(tmp_path, {f"{i}": "" for i in range(20)})
    part = Part("val", (("train", 0.6), ("val", 0.4)), seed=3)
    data, _ = read(folder, names=("ant",), part=part)
    held = [i for i in range(20) if part.holds(f"elsewhere/{i}.jpg")]
    assert sorted(names(data)) == sorted(f"images/{i}.png" for i in held) and 0 < len(held) < 20


def test_links_to_folders_are_followed_once(tmp_path):
    write(tmp_path / "real", {"a": "0 .5 .5 1 1"})
    os.symlink(tmp_path / "real", tmp_path / "real/images/loop")
    data, _ = read(tmp_path / "real", names=("ant",))
    assert names(data) == ["images/a.png"]
