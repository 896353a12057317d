"""Pascal VOC: what is read of a folder of xml files, and what is reported."""

import os

import pytest
from clq.data.formats.findings import Findings
from clq.data.formats.source import Part, Source
from clq.data.formats.voc import read_voc
from clq.errors import UserError
from PIL import Image

SIZE = "<size><width>20</width><height>10</height></size>"


def an_object(name="cat", box=(1, 1, 20, 10), extra=""):
    sides = "".join(f"<{key}>{v}</{key}>" for key, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>"


def write(folder, stem, *objects, size=SIZE, filename="", image=True):
    """Writes an xml file and its image of 20 x 10 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"
    (folder / f"{stem}.xml").write_text(text)
    if image:
        Image.new("RGB", (20, 10)).save(folder / f"{stem}.png")


def read(folder, *, skip=True, all_classes=True, **source):
    findings = Findings("pets", skip)
    return read_voc(Source("voc", str(folder), **source), findings, all_classes=all_classes), findings


def boxes(data):
    return [(a["image_id"], a["category_id"], a["bbox"], a["iscrowd"]) for a in data["annotations"]]


def test_coordinates_count_pixels_from_1_and_include_both_ends(tmp_path):
    # The first box is the whole image of 20 x 10 pixels, the second its second pixel in the third row.
    write(tmp_path, "a", an_object(box=(1, 1, 20, 10)), an_object("ant", (2, 3, 2, 3)), an_object(box=(2.5, 1, 4.0, 2)))
    data, findings = read(tmp_path)
    assert data["images"] == [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}]
    assert data["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}]
    assert boxes(data) == [(1, 2, [0, 0, 20, 10], 0), (1, 1, [1, 2, 1, 1], 0), (1, 2, [1.5, 0, 2.5, 2], 0)]
    assert [a["area"] for a in data["annotations"]] == [200, 1, 5]
    assert not findings.faults and not findings.notes


def test_difficult_objects_are_crowds_and_boxes_from_0_are_noted(tmp_path):
    difficult = an_object(extra="<difficult> 1 </difficult><truncated>1</truncated>")
    write(tmp_path, "a", difficult, an_object(box=(0, 1, 4, 4), extra="<difficult>0</difficult>"))
    data, findings = read(tmp_path)
    assert [a["iscrowd"] for a in data["annotations"]] == [1, 0]
    assert boxes(data)[1][2] == [-1, 0, 5, 4]
    difficult, before = findings.notes.items()
    assert difficult[0].startswith("objects are difficult") and before[0].startswith("boxes begin before 1")
    assert before[1].first == f"{tmp_path}/a.xml: object 2"


@pytest.mark.parametrize(
    "broken, message",
    [
        (an_object(box=("nan", 1, 2, 3)), "object 2 has xmin 'nan' (text); it must be a coordinate in pixels"),
        (an_object(box=(1, 1, "inf", 3)), "object 2 has xmax 'inf'"),
        (an_object(box=(1, 1, 1e7, 3)), "object 2 has xmax '10000000.0'"),
        (an_object(box=(1, 1, 2, "")), "object 2 has ymax ''"),
        (an_object(box=(1, 1, 2, 3)).replace("ymin", "top"), "object 2 has no ymin"),
        (an_object(box=(9, 1, 2, 3)), "object 2 has a box from 9, 1 to 2, 3 (x, y), which ends before it begins"),
        ("<object><name>cat</name></object>", "object 2 has no bndbox"),
        (an_object(name=" "), "object 2 has no name"),
        (an_object(extra="<difficult>no</difficult>"), "object 2 has difficult 'no' (text); it must be 0 or 1"),
    ],
)
def test_a_faulty_object_is_named_and_left_out_alone(tmp_path, broken, message):
    write(tmp_path, "a", an_object(), broken, an_object("dog"))
    data, findings = read(tmp_path)
    assert [a["category_id"] for a in data["annotations"]] == [1, 2] and len(data["images"]) == 1
    (left_out,) = findings.left_out
    assert left_out.reason.startswith(f"{tmp_path}/a.xml: {message}")
    assert (left_out.image, left_out.annotation) == ("a.png", f"{tmp_path}/a.xml: object 2")


BOMB = '<!DOCTYPE a [<!ENTITY x "xxxx"><!ENTITY y "&x;&x;">]><annotation><filename>&y;</filename></annotation>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>'


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "cannot be read as xml"),
        (b"<annotation><object>", "cannot be read as xml"),
        (b"\xff\xfe\x00", "cannot be read as xml"),
        (b"<?xml version='1.0' encoding='klingon'?><annotation/>", "cannot be read as xml"),
        (BOMB.encode(), "is refused, because it declares entities"),
        (OUTSIDE.encode(), "is refused, because it declares entities"),
        (b"<annotation>" + b" " * (8 << 20), "cannot be read as xml (it has more than 8 MiB)"),
        (b"<html/>", "has the element 'html' (text) in place of annotation"),
        (f"<annotation>{SIZE}</annotation>".replace("20", "wide").encode(), "has width 'wide' (text) in its size"),
        (f"<annotation>{SIZE}</annotation>".replace("20", "-20").encode(), "has width '-20'"),
        (f"<annotation>{SIZE}</annotation>".replace("20", "20.5").encode(), "has width '20.5'"),
    ],
)
def test_a_faulty_xml_file_is_named_and_its_image_left_out(tmp_path, content, message):
    write(tmp_path, "a", an_object())
    write(tmp_path, "b", an_object())
    (tmp_path / "a.xml").write_bytes(content)
    data, findings = read(tmp_path)
    assert [image["file_name"] for image in data["images"]] == ["b.png"]
    (left_out,) = findings.left_out
    assert left_out.reason.startswith(f"{tmp_path}/a.xml: {message}")
    assert (left_out.image, left_out.annotation) == ("a.png", None)


def test_a_missing_size_is_read_from_the_image_if_that_can_be_read(tmp_path):
    write(tmp_path, "a", an_object(), size="")
    write(tmp_path, "b", an_object(), size=SIZE.replace("20", "0"))
    write(tmp_path, "c", an_object(), size="")
    (tmp_path / "c.png").write_bytes(b"no image")
    data, findings = read(tmp_path)
    assert [(i["file_name"], i["width"], i["height"]) for i in data["images"]] == [("a.png", 20, 10), ("b.png", 20, 10)]
    assert [a["image_id"] for a in data["annotations"]] == [1, 2]
    assert findings.notes["xml files have no size, which is read from the image"].count == 3
    assert [left_out.image for left_out in findings.left_out] == ["c.png"]


@pytest.mark.parametrize("folders", [("Annotations", "JPEGImages"), ("annotations", "images")])
@pytest.mark.parametrize("given", [".", "annotations"])
def test_the_folders_of_pascal_voc_and_their_usual_variants_are_found(tmp_path, folders, given):
    write(tmp_path / folders[0], "a", an_object(), image=False)
    write(tmp_path / "elsewhere", "a", an_object())
    (tmp_path / "elsewhere").rename(tmp_path / folders[1])
    path = tmp_path if given == "." else tmp_path / folders[0]
    data, _ = read(path)
    assert os.path.samefile(os.path.join(path, data["images"][0]["file_name"]), tmp_path / folders[1] / "a.png")


def test_the_image_is_the_one_of_the_same_name_or_else_the_one_of_filename(tmp_path):
    write(tmp_path / "xml", "a", an_object(), filename="z.png", image=False)  # stale: a.png has been renamed
    write(tmp_path / "xml", "b", an_object(), filename="C:\\old\\photo b.png", image=False)
    write(tmp_path / "xml", "c", an_object(), filename="d", image=False)
    write(tmp_path / "xml", "e", an_object(), filename="e.PNG", image=False)
    write(tmp_path / "xml", "gone", an_object(), filename="gone.jpg", image=False)
    for name in ("a.png", "z.png", "photo b.png", "d.png", "e.PNG", "e.bmp", "._a.png", "unused.png"):
        write(tmp_path / "img", "x", an_object())
        (tmp_path / "img/x.png").rename(tmp_path / "img" / name)
    data, findings = read(tmp_path / "xml", images=str(tmp_path / "img"))
    assert [image["file_name"] for image in data["images"]] == ["a.png", "photo b.png", "d.png", "e.PNG"]
    (left_out,) = findings.left_out
    assert left_out.reason == f"{tmp_path}/xml/gone.xml: has no image gone.* in {tmp_path}/img, nor gone.jpg"
    assert findings.notes["images have no xml file, and are not used"].count == 4  # d, photo b, unused and z by name


def test_a_split_is_a_file_in_imagesets_and_its_classes_are_those_of_all_files(tmp_path):
    for stem, name in (("a", "cat"), ("b", "bee"), ("c", "cow"), ("two words", "cat")):
        write(tmp_path / "Annotations", stem, an_object(name))
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("c\r\na  1\n\nb -1\ntwo words\nc.xml\ngone\n")
    data, findings = read(tmp_path, split="train", images=str(tmp_path / "Annotations"))
    assert [image["file_name"] for image in data["images"]] == ["a.png", "c.png", "two words.png"]
    assert [c["name"] for c in data["categories"]] == ["bee", "cat", "cow"]
    assert [a["category_id"] for a in data["annotations"]] == [2, 3, 2]
    assert "line 7 names 'gone' (text), which has no xml file" in findings.left_out[0].reason
    assert findings.notes["images are listed in the split more than once, and are used once"].first == "c"
    few, _ = read(tmp_path, split="train", images=str(tmp_path / "Annotations"), all_classes=False)
    assert [c["name"] for c in few["categories"]] == ["cat", "cow"]
    with pytest.raises(
        UserError, match=r"split val needs the file .*/val.txt, which does not exist; there are train\."
    ):
        read(tmp_path, split="val")


def test_a_random_part_depends_on_names_alone(tmp_path):
    for i in range(20):
        write(tmp_path, f"{i}", an_object(), an_object("bee" if i else "ant"))
    shares = (("train", 0.5), ("val", 0.5))
    parts = [read(tmp_path, part=Part(name, shares))[0] for name in ("train", "val")]
    names = [[image["file_name"] for image in part["images"]] for part in parts]
    assert sorted(names[0] + names[1]) == sorted(f"{i}.png" for i in range(20)) and min(map(len, names)) > 0
    assert parts[0]["categories"] == parts[1]["categories"]
    write(tmp_path, "new", an_object())
    after = [read(tmp_path, part=Part(name, shares))[0] for name in ("train", "val")]
    assert [[i["file_name"] for i in p["images"] if i["file_name"] != "new.png"] for p in after] == names


def test_a_folder_in_which_no_xml_file_has_its_image_is_refused(tmp_path):
    write(tmp_path, "a", an_object(), image=False)
    with pytest.raises(UserError, match=r"none of its 1 xml files .* name the folder of the images under images"):
        read(tmp_path)
