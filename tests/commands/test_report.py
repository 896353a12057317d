"""clq report, through its command line."""

import json

import pytest
from clq.commands.report import run_names

CATEGORIES = [{"id": 3, "name": "cat"}]
TRUTH = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in (1, 2)],
    "categories": CATEGORIES,
    "annotations": [{"id": i, "image_id": i, "category_id": 3, "bbox": [5, 5, 20, 20]} for i in (1, 2)],
}
RESULTS = [{"image_id": 1, "category_id": 3, "bbox": [5, 5, 20, 18], "score": 0.8}]


@pytest.fixture
def files(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    return tmp_path


def test_two_runs(files, run_clq, capsys):
    arguments = files / "a/results.json", files / "truth.json", files / "b/results.json"
    assert run_clq("report", *arguments, "--output", files / "out") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{files}/out/report.html"
    numbers = json.loads((files / "out/metrics.json").read_text())
    assert list(numbers) == ["a/results", "b/results"]
    # One of two cats is found with an IoU of .9: 51 of 101 recalls at 9 of 10 thresholds.
    assert numbers["a/results"]["coco"]["AP"] == pytest.approx(100 * 51 / 101 * 0.9)


def test_the_folder_report_is_the_default(files, run_clq, monkeypatch):
    monkeypatch.chdir(files)
    assert run_clq("report", "a/results.json", "truth.json") == 0
    assert (files / "report/report.html").is_file()


def refused(capsys):
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and error.startswith("clq report: ")
    return error


@pytest.mark.parametrize(
    "results, message",
    [
        ([{**RESULTS[0], "image_id": 9}], "results.json: detection 1 has an unknown image_id"),
        ([{**RESULTS[0], "cls_score": 0.5}, RESULTS[0]], "results.json: detection 2 lacks cls_score"),
        ([{**RESULTS[0], "score": 1.5}], "results.json: detection 1 has score 1.5, not a number from 0 to 1"),
        ([{**RESULTS[0], "score": -0.5}], "results.json: detection 1 has score -0.5, not a number from 0 to 1"),
        ([{**RESULTS[0], "cls_score": "a"}], "results.json: detection 1 has cls_score 'a', not a number"),
        ({}, "results.json: holds no list of detections"),
    ],
)
def test_results_that_cannot_be_used(results, message, files, run_clq, capsys):
    (files / "b/results.json").write_text(json.dumps(results))
    arguments = files / "a/results.json", files / "truth.json", files / "b/results.json"
    assert run_clq("report", *arguments, "--output", files / "out") == 2
    assert message in refused(capsys)
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--names", "x"], "--names: 1 names for 2 results files"),
        (["--names", "x", "x"], "--names: two runs have the same name"),
        (["--precision", "0"], "--precision 0.0: must be above 0 and at most 1"),
        (["--images", "nowhere"], "--images nowhere: no such folder"),
        (["--candidates", "x"], "--candidates: 1 files for 2 results files"),
    ],
)
def test_options_that_cannot_be_used(options, message, files, run_clq, capsys):
    arguments = files / "a/results.json", files / "truth.json", files / "b/results.json"
    assert run_clq("report", *arguments, "--output", files / "out", *options) == 2
    assert message in refused(capsys)


def test_annotations_that_cannot_be_used(files, run_clq, capsys):
    (files / "truth.json").write_text(json.dumps({k: v for k, v in TRUTH.items() if k != "annotations"}))
    assert run_clq("report", files / "a/results.json", files / "truth.json", "--output", files / "out") == 2
    assert "truth.json: has no annotations" in refused(capsys)


def test_names_are_the_shortest_ends_of_paths_that_differ():
    assert run_names(["x/a.json", "x/b.json"]) == ["a", "b"]
    assert run_names(["x/a/results.json", "x/b/results.json"]) == ["a/results", "b/results"]
