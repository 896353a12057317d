import json
import math
import os

import numpy as np
import pytest
from clq.errors import UserError
from clq.evaluation.matches import Matches
from clq.experiments.bootstrap import Difference, VarianceParts
from clq.experiments.comparison import cached_matches, interval_cell, what_is_needed
from clq.experiments.forest_plot import draw_forest
from clq.experiments.store import Store

BOX = [0, 0, 10, 10]


def made(hits):
    """A run on images of one object each, which finds those that are said."""
    found = np.flatnonzero(hits)
    bits = np.full(len(found), 2**10 - 1, np.uint16)
    return Matches(
        np.arange(len(hits)), np.ones((len(hits), 1), np.uint16), np.array([len(found)]), found, bits, 0 * bits
    )


@pytest.fixture
def stored(tmp_path):
    """Two variants on 60 images, two seeds each; "some parts" finds 20 images fewer."""
    store, rows = Store(tmp_path / "kept"), {}
    store.folder.mkdir()
    for name, found in (("whole", (50, 52)), ("some parts", (30, 32))):
        rows[name] = {"seeds": {"1": {}, "2": {}}}
        for seed, count in enumerate(found, start=1):
            made(np.arange(60) < count).save(str(store.file(name, seed)))
    store.metrics_file.write_text(json.dumps({"rows": rows}))
    return store


def test_stored_runs_by_variant_and_seed(stored):
    found = stored.matches()
    assert [(name, list(runs)) for name, runs in found.items()] == [("whole", [1, 2]), ("some parts", [1, 2])]
    assert found["whole"][2].counts.tolist() == [52]


@pytest.mark.parametrize("content", ["[]", "{}", '{"rows": {"a": {}}}', '{"rows": {"a": {"seeds": {"one": {}}}}}'])
def test_a_json_file_that_is_none_of_a_store(stored, content):
    stored.metrics_file.write_text(content)
    with pytest.raises(UserError, match=r"kept\.json: is not what tools/study\.py writes beside its store"):
        stored.matches()


def test_files_that_are_missing(stored, tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such file; tools/study\.py writes it"):
        Store(tmp_path / "none").matches()
    stored.file("some parts", 2).unlink()
    with pytest.raises(UserError, match=r"kept/some_parts_seed2\.npz: "):
        stored.matches()


def test_matches_are_found_once_and_anew_when_the_results_are_newer(tmp_path, monkeypatch):
    truth = {
        "images": [{"id": 1, "width": 20, "height": 20, "file_name": "1.png"}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 100, "iscrowd": 0}],
    }
    results = [{"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.5}]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    arguments = tmp_path, str(tmp_path / "truth.json"), path, 100
    assert cached_matches(*arguments).correct.tolist() == [2**10 - 1]
    with monkeypatch.context() as patch:
        patch.setattr("clq.experiments.comparison.match_results", lambda *_: pytest.fail("found once more"))
        assert cached_matches(*arguments).correct.tolist() == [2**10 - 1]
    path.write_text(json.dumps(results * 2))
    later = (tmp_path / "matches.npz").stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    assert cached_matches(*arguments).correct.tolist() == [2**10 - 1, 0]


def test_a_damaged_file_of_matches_is_made_anew(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "matches.npz").write_bytes(b"PK half of it")
    monkeypatch.setattr("clq.experiments.comparison.match_results", lambda *_: made(np.ones(3)))
    assert cached_matches(tmp_path, "truth.json", tmp_path / "results.json", 100).counts.tolist() == [3]
    assert Matches.load(str(tmp_path / "matches.npz")).counts.tolist() == [3]


def test_words_by_hand():
    parts = VarianceParts(seed=1.0, image=0.0, both=0.0)
    unsure = Difference(0.5, -0.74, 1.74, 5, parts)
    assert interval_cell(unsure) == "+0.50 [-0.74, +1.74]" and interval_cell(None) == "–"
    found = {
        "A": unsure,
        "B": Difference(0.5, -0.5, 1.5, 1, None),
        "C": Difference(0, -1, 1, 4, VarianceParts(0, 500, 0)),
        "D": Difference(0, -1, 1, 3, VarianceParts(1, 500, 0)),
        "E": Difference(0, -1, 1, 2, parts),
        "F": Difference(0, -0.5, 0.5, 5, parts),
        "G": Difference(math.nan, math.nan, math.nan, 5, parts),
    }
    assert interval_cell(found["B"]) == "+0.50 [-0.50, +1.50] (images only)" and interval_cell(found["G"]) == "–"
    assert what_is_needed(found, "R", 0.5, 100) == [
        # t(16) / sqrt(17) is 0.514, t(17) / sqrt(18) 0.497; no number of images makes up for 5 seeds.
        "A - R: ±1.24 AP with 5 seed(s); ±0.5 takes about 18 seeds on these images.",
        "B - R: ±1.00 AP with 1 seed(s), of the images alone; a second seed shows what the trainings add.",
        # 1.96 sqrt(500 / I) is just below 0.5 with 7683 images; what is tried next is 100 * 1.05^89, rounded up.
        "C - R: ±1.00 AP with 4 seed(s); ±0.5 takes about 7689 such images with these seeds.",
        "D - R: ±1.00 AP with 3 seed(s); ±0.5 takes more of both.",
        "E - R: ±1.00 AP with 2 seed(s); two seeds are too few to say what ±0.5 takes.",
        "F - R: ±0.50 AP with 5 seed(s); ±0.5 is reached.",
        "G - R: there is no AP, because the test set has no objects.",
    ]


def test_names_with_dollars_and_intervals_of_images_are_drawn(tmp_path):
    differences = {r"$\foo$": Difference(1, 0, 2, 3, VarianceParts(1, 1, 1)), "_^": Difference(1, 0.5, 2, 1, None)}
    draw_forest(differences, r"$\frac{1}$", tmp_path / "forest.png")
    assert (tmp_path / "forest.png").stat().st_size > 1000


@pytest.mark.parametrize("option", [("--half-width", "nan"), ("--half-width", "-1"), ("--half-width", "1e300")])
def test_widths_and_resamples_that_make_no_sense(stored, run, capsys, tmp_path, option):
    words = stored.folder, "--reference", "whole", "--output", tmp_path / "out"
    assert run("tools/compare.py", *words, *option) == 2
    assert "must be a number of AP above 0" in capsys.readouterr().err
    assert run("tools/compare.py", *words, "--resamples", 1) == 2
    assert "must be from 100 to 100000" in capsys.readouterr().err


def test_the_tool(stored, run, capsys, tmp_path):
    output = tmp_path / "out"
    assert run("tools/compare.py", stored.folder, "--reference", "whole", "--output", output, "--resamples", 200) == 0
    said = capsys.readouterr().out
    assert "some parts - whole: ±" in said and "with 2 seed(s)" in said
    content = json.loads((output / "differences.json").read_text())
    assert content["whole"]["difference"] is None and set(content["some parts"]["AP"]) == {"1", "2"}
    difference = content["some parts"]["difference"]
    assert difference["value"] == pytest.approx(
        np.mean([30 / 60, 32 / 60]) * 100 - np.mean([50 / 60, 52 / 60]) * 100, abs=1
    )
    assert difference["low"] < difference["value"] < difference["high"] < 0
    assert (output / "differences.md").read_text().count("\n") == 4
    assert (output / "forest.png").stat().st_size > 1000
    assert run("tools/compare.py", stored.folder, "--reference", "none", "--output", output) == 2
    assert "--reference none: not one of whole, some parts." in capsys.readouterr().err
