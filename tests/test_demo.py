import json
import shutil
from pathlib import Path

import clq
import numpy as np
import pytest
from PIL import Image

KEYS = {"image_id", "file_name", "category_id", "category_name", "bbox", "score", "cls_score", "predicted_iou"}


@pytest.fixture
def demo(tiny, trained, tmp_path, run):
    """``demo(*inputs, more=(), opts=())`` -> status, names of the pictures, results."""
    out = tmp_path / "out"

    def call(*inputs, more=(), opts=()):
        argv = ["--config-file", tiny, "--input", *inputs, "--output", out, "--json", out / "r.json", *more]
        status = run("demo.py", *argv, "--opts", "MODEL.WEIGHTS", trained / "model_final.pth", *opts)
        results = json.loads((out / "r.json").read_text()) if (out / "r.json").exists() else None
        return status, sorted(p.name for p in out.glob("*") if p.name != "r.json"), results

    call.out = out
    return call


@pytest.fixture
def shapes(tiny):
    """Folder of the validation images."""
    return Path(tiny).parent / "shapes_val"


def iou(one, other):
    """Of two XYWH boxes."""
    (x, y, w, h), (u, v, s, t) = one, other
    inter = max(min(x + w, u + s) - max(x, u), 0) * max(min(y + h, v + t) - max(y, v), 0)
    return inter / (w * h + s * t - inter)


def test_finds_the_objects_and_says_what_they_are(demo, shapes):
    status, pictures, results = demo(shapes, more=["--confidence-threshold", "0.25"])
    assert (status, pictures) == (0, ["0.png", "1.png", "2.png", "3.png"])
    truth = json.loads(shapes.with_suffix(".json").read_text())
    names = {c["id"]: c["name"] for c in truth["categories"]}
    for r in results:
        assert set(r) == KEYS
        assert r["file_name"] == str(shapes / f"{r['image_id']}.png")
        assert r["category_name"] == names[r["category_id"]]
        assert 0.25 <= r["score"] == pytest.approx(r["cls_score"] * r["predicted_iou"] ** 0.3, rel=1e-4)
    found = [
        any(
            r["image_id"] + 1 == a["image_id"]
            and r["category_id"] == a["category_id"]
            and iou(r["bbox"], a["bbox"]) > 0.5
            for r in results
        )
        for a in truth["annotations"]
    ]
    assert len(found) == 8 and sum(found) >= 7


def test_pictures_are_the_images_with_boxes(demo, shapes):
    _, _, results = demo(shapes / "0.png")
    before, after = (np.asarray(Image.open(folder / "0.png").convert("RGB")) for folder in (shapes, demo.out))
    changed = (before != after).any(axis=2)
    assert before.shape == after.shape
    for x, y, w, _ in (map(round, r["bbox"]) for r in results):
        assert changed[np.clip(y, 0, 95), x + 2 : x + w - 2].mean() > 0.9  # the upper edge
    assert changed.mean() < 0.9


def test_threshold(demo, shapes):
    _, _, every = demo(shapes, more=["--confidence-threshold", "0"])
    _, _, some = demo(shapes, more=["--confidence-threshold", "0.5"])
    assert some == [r for r in every if r["score"] >= 0.5]
    assert 0 < len(some) < len(every)
    _, _, default = demo(shapes)
    assert default == [r for r in every if r["score"] >= 0.4]


def test_damaged_image_is_named_and_skipped(demo, shapes, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    whole = (shapes / "0.png").read_bytes()
    (tmp_path / "in" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "text.jpg").write_text("no image")
    Image.new("RGB", (3000, 1)).save(tmp_path / "in" / "thin.png")
    shutil.copy(shapes / "1.png", tmp_path / "in" / "whole.png")
    resize = ["INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 200]
    status, pictures, results = demo(tmp_path / "in", opts=resize)
    assert (status, pictures) == (1, ["whole.png"])
    assert {r["image_id"] for r in results} == {3}
    out, err = capsys.readouterr()
    assert [line.split(": ")[0] for line in err.splitlines()] == [
        str(tmp_path / "in" / n) for n in ("cut.png", "text.jpg", "thin.png")
    ]
    assert f"[4/4] {tmp_path / 'in' / 'whole.png'}: {len(results)} detections" in out


def test_same_names_get_pictures_of_their_own(demo, shapes, tmp_path):
    for folder, image in (("a", "0.png"), ("b", "1.png")):
        (tmp_path / folder).mkdir()
        shutil.copy(shapes / image, tmp_path / folder / "x.png")
    status, pictures, _ = demo(tmp_path / "a", str(tmp_path / "?" / "x.png"))  # a/x.png twice, drawn once
    assert (status, pictures) == (0, ["x.png", "x_2.png"])


def test_kinds_of_files(demo, shapes, tmp_path):
    """The same picture upside down with an orientation tag gives the same boxes; grey, alpha and 16 bits work."""
    image, folder = Image.open(shapes / "0.png"), tmp_path / "in"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 3  # half a turn
    image.save(folder / "a.png")
    image.transpose(Image.Transpose.ROTATE_180).save(folder / "b.png", exif=exif)
    image.convert("RGBA").save(folder / "c.png")
    image.convert("L").save(folder / "d.tif")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "e.png")
    status, pictures, results = demo(folder, more=["--confidence-threshold", "0.1"])
    assert (status, pictures) == (0, ["a.png", "b.png", "c.png", "d.tif", "e.png"])
    boxes = [[(r["category_id"], r["bbox"], r["score"]) for r in results if r["image_id"] == i] for i in range(5)]
    assert boxes[0] and boxes[0] == boxes[1] == boxes[2]
    assert boxes[3] and boxes[3] == boxes[4] != boxes[0]


def test_classes_go_by_number_where_no_data_set_is(demo, shapes, capsys, caplog):
    gone = [f"{{'name': '{n}', 'json': 'gone.json', 'images': '.'}}" for n in ("shapes_train", "shapes_val")]
    sets = ["DATASETS.COCO_JSON", f"[{', '.join(gone)}]"]
    status, _, _ = demo(shapes, opts=sets)
    assert status == 2 and "Or set the number" in capsys.readouterr().err
    status, _, results = demo(shapes, opts=[*sets, "MODEL.CLQ.NUM_CLASSES", 2])
    assert status == 0 and "Classes are numbered" in caplog.text
    assert {(r["category_id"], r["category_name"]) for r in results} == {(0, "0"), (1, "1")}


@pytest.mark.parametrize(
    ("inputs", "more", "opts", "message"),
    [
        (["gone.jpg"], [], [], "gone.jpg: no such file or folder"),
        (["gone/*.jpg"], [], [], "gone/*.jpg: no file matches"),
        (["empty"], [], [], "in this folder"),
        (["shapes"], ["--confidence-threshold", "30"], [], "--confidence-threshold 30.0: must be within 0 and 1"),
        (["shapes"], ["--output", "shapes"], [], "would be overwritten"),
        (["shapes"], ["--json", "empty"], [], "is a folder; name a file"),
        (["shapes"], [], ["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        (["shapes"], [], ["MODEL.WEIGHTS", "gone.pth"], "gone.pth: no such file"),
    ],
)
def test_mistakes_are_one_line_and_status_2(inputs, more, opts, message, demo, shapes, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    paths = {"empty": tmp_path / "empty", "shapes": shapes}
    status, pictures, _ = demo(*(paths.get(x, x) for x in inputs), more=[paths.get(x, x) for x in more], opts=opts)
    assert (status, pictures) == (2, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("crop", "names"), [([], ["0.png", "1.png"]), (["--crop", "64"], ["0_crop.png", "1_crop.png"])]
)
def test_plot_detections_prints_the_pictures_it_made(crop, names, tiny, trained, tmp_path, run, capsys):
    opts = ["MODEL.WEIGHTS", trained / "model_final.pth"]
    argv = ["--config-file", tiny, "--output", tmp_path, "--limit", 2, *crop, *opts]
    assert run("tools/plot_detections.py", *argv) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / n) for n in names]
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 2 * 4 * (64 if crop else 96)  # two panels, enlarged at most 4 times


def test_plot_detections_leaves_out_what_cannot_be_read_and_overwrites_nothing(tiny, trained, tmp_path, run, capsys):
    entry = next(e for e in clq.setup_cfg(tiny).DATASETS.COCO_JSON if e["name"] == "shapes_val")
    images, data = tmp_path / "images", json.loads(Path(entry["json"]).read_text())
    shutil.copytree(entry["images"], images)
    (images / "a").mkdir()
    for record, name in zip(data["images"], ["gone.png", "damaged.png", "a/b.png", "a_b.png"], strict=True):
        (images / record["file_name"]).rename(images / name)
        record["file_name"] = name
    (images / "gone.png").unlink()
    damaged = bytearray((images / "damaged.png").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (images / "damaged.png").write_bytes(damaged)
    (tmp_path / "odd.json").write_text(json.dumps(data))
    sets = [{"name": "odd", "json": str(tmp_path / "odd.json"), "images": str(images)}]
    opts = ["MODEL.WEIGHTS", trained / "model_final.pth", "MODEL.CLQ.NUM_CLASSES", 2, "DATASETS.ON_ERROR", "skip"]
    opts += ["DATASETS.COCO_JSON", sets, "DATASETS.TRAIN", (), "DATASETS.TEST", ("odd",)]
    argv = ["--config-file", tiny, "--output", tmp_path / "out"]
    assert run("tools/plot_detections.py", *argv, *opts) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "out" / n) for n in ("a_b.png", "a_b_2.png")]
