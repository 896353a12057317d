"""clq predict in this process: streams, formats of results, tiles, thresholds, and the end by a signal."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from clq.commands.predict import main
from clq.utils.cli import run_cli
from PIL import Image


@pytest.fixture
def shapes(tiny):
    """Folder of the validation images."""
    return Path(tiny).parent / "shapes_val"


@pytest.fixture
def predict(trained):
    """``predict(*argv)`` -> exit status, of a detector that is loaded from the folder of its training."""

    def call(*argv):
        with pytest.raises(SystemExit) as exited:
            run_cli(main, ["--config-file", str(trained), "--confidence-threshold", "0.2", *map(str, argv)])
        return exited.value.code

    return call


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_and_the_coco_list_have_the_same_detections(predict, shapes, tmp_path):
    for name in ("r.jsonl", "r.json"):
        assert predict("--input", shapes, "--json", tmp_path / name) == 0
    images, found = lines(tmp_path / "r.jsonl"), json.loads((tmp_path / "r.json").read_text())
    assert [x["file_name"] for x in images] == [str(shapes / f"{i}.png") for i in range(4)]
    assert all((x["width"], x["height"]) == (96, 96) and x["detections"] for x in images)
    flat = [{**d, **{k: x[k] for k in ("image_id", "file_name")}} for x in images for d in x["detections"]]
    assert flat == found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json", "r.jsonl"]


def test_batches_give_the_same_in_the_same_order(predict, shapes, tmp_path):
    """Wide and tall images in one batch would be padded, which changes what a detector finds near the padding."""
    (tmp_path / "in").mkdir()
    with Image.open(shapes / "0.png") as image:
        for i, size in enumerate([(96, 64), (64, 96), (96, 64), (64, 96), (96, 64)]):
            image.crop((0, 0, *size)).save(tmp_path / "in" / f"{i}.png")
    results = []
    for batch in (1, 2, 3):
        assert predict("--input", tmp_path / "in", "--json", tmp_path / "r.jsonl", "--batch-size", batch) == 0
        results.append(lines(tmp_path / "r.jsonl"))
    assert any(x["detections"] for x in results[0])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one["file_name"] == two["file_name"]
            boxes, same = (np.array([d["bbox"] for d in x["detections"]]) for x in (one, two))
            np.testing.assert_allclose(boxes, same, atol=0.01)


def test_subfolders_by_flag_and_a_damaged_image(predict, shapes, tmp_path, capsys):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    shutil.copy(shapes / "0.png", tmp_path / "in" / "sub" / "c.png")
    (tmp_path / "in" / "b.png").write_text("no image")
    assert predict("--input", tmp_path / "in", "--recursive", "--json", "-") == 1
    out, err = capsys.readouterr()
    damaged, whole = map(json.loads, out.splitlines())
    assert damaged == {"image_id": 0, "file_name": str(tmp_path / "in" / "b.png"), "error": damaged["error"]}
    assert "none of the formats" in damaged["error"] and whole["image_id"] == 1
    assert f"b.png: skipped: {damaged['error']}" in err and "1 images, 1 skipped" in err


@pytest.fixture
def stdin(monkeypatch):
    """``stdin(*paths)`` writes paths to the standard input; ``stdin.close()`` ends it."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as f:
        monkeypatch.setattr("sys.stdin", f)

        def write(*paths):
            os.write(writer, "".join(f"{path}\n" for path in paths).encode())

        write.close = lambda: os.close(writer)
        yield write


def wait_for(path, text):
    """Waits up to 30 s until a file has a text; returns its content."""
    for _ in range(1500):
        if path.exists() and text in (content := path.read_text()):
            return content
        time.sleep(0.02)
    return ""


@pytest.mark.parametrize("name", ["r.jsonl", "r.json"])
def test_paths_from_stdin_are_answered_before_it_ends(name, predict, shapes, stdin, tmp_path):
    answers = []

    def ask():
        for i in range(3):
            stdin(shapes / f"{i}.png")
            answers.append(wait_for(tmp_path / name, f"{i}.png"))
        stdin.close()

    asking = threading.Thread(target=ask)
    asking.start()
    assert predict("--input", "-", "--json", tmp_path / name, "--batch-size", 2) == 0
    asking.join()
    final = (tmp_path / name).read_text()
    assert len(answers) == 3 and all(answers) and all(final.startswith(answer) for answer in answers)
    if name == "r.jsonl":
        assert [len(answer.splitlines()) for answer in answers] == [1, 2, 3]
    else:  # a kill leaves all but the last bracket
        found = [{d["file_name"] for d in json.loads(text)} for text in (*(a + "]" for a in answers), final)]
        assert [len(files) for files in found] == [1, 2, 3, 3]


def test_an_interruption_is_one_line_and_leaves_valid_json(predict, shapes, stdin, tmp_path, capsys):
    stdin(shapes / "0.png")

    def interrupt():
        wait_for(tmp_path / "r.json", "0.png")
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    assert predict("--input", "-", "--json", tmp_path / "r.json") == 130
    interrupting.join()
    stdin.close()
    assert {d["file_name"] for d in json.loads((tmp_path / "r.json").read_text())} == {str(shapes / "0.png")}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"SIGINT: ended after 1 images; {tmp_path / 'r.json'} has their results.")


def test_thresholds_of_classes(predict, shapes, tmp_path):
    (tmp_path / "t.json").write_text('{"blue": 1, "red": 0.3}')
    assert predict("--input", shapes, "--json", tmp_path / "r.json", "--thresholds", tmp_path / "t.json") == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert {d["category_name"] for d in found} == {"red"} and min(d["score"] for d in found) >= 0.3


def test_tiles(predict, shapes, tmp_path):
    parts = [np.asarray(Image.open(shapes / f"{i}.png").convert("RGB")) for i in range(2)]
    Image.fromarray(np.concatenate(parts, axis=1)).save(tmp_path / "wide.png")
    tiles = ["--tile", 96, "--overlap", 0]
    assert predict("--input", tmp_path / "wide.png", "--json", tmp_path / "wide.jsonl", *tiles) == 0
    assert predict("--input", shapes / "0.png", shapes / "1.png", "--json", tmp_path / "alone.jsonl") == 0
    (wide,), alone = lines(tmp_path / "wide.jsonl"), lines(tmp_path / "alone.jsonl")
    boxes = [[x + 96 * i, y, w, h] for i in (0, 1) for x, y, w, h in (d["bbox"] for d in alone[i]["detections"])]
    np.testing.assert_allclose(sorted(d["bbox"] for d in wide["detections"]), sorted(boxes), atol=1e-3)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--input", "{shapes}"], "--output: name a folder for the pictures"),
        (["--input", "-", "a.png", "--json", "r.json"], "--input -: reads all paths"),
        (["--input", "{shapes}", "--json", "r.json", "--overlap", "0.95"], "--overlap 0.95: must be within 0 and 0.9"),
    ],
)
def test_mistakes_are_one_line(argv, message, predict, shapes, capsys):
    assert predict(*(x.format(shapes=shapes) for x in argv)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
