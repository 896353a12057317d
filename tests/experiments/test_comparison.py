import json
import os

import numpy as np
import pytest
from clq.errors import UserError
from clq.evaluation.matches import Matches
from clq.experiments.bootstrap import Difference, VarianceParts
from clq.experiments.comparison import cached_matches, interval_cell, what_is_needed
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
    with pytest.raises(UserError, match=r"none\.json: cannot be read \(No such file"):
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


def test_words_by_hand():
    parts = VarianceParts(seed=1.0, image=0.0, both=0.0)
    unsure = Difference(0.5, -0.37, 1.38, 5, parts)
    assert interval_cell(unsure) == "+0.50 [-0.37, +1.38]" and interval_cell(None) == "–"
    found = {
        "A": unsure,
        "B": Difference(0.5, -0.5, 1.5, 1, None),
        "C": Difference(0, -1, 1, 4, VarianceParts(0, 500, 0)),
        "D": Difference(0, -1, 1, 2, VarianceParts(1, 500, 0)),
    }
    assert what_is_needed(found, "R", 0.5, 100) == [
        # 1.96 sqrt(1 / S) is 0.51 with 15 seeds, and 0.49 with 16; no number of images makes up for 5 seeds.
        "A - R: ±0.88 AP with 5 seed(s); ±0.5 takes 16 seeds on these images.",
        "B - R: ±1.00 AP with 1 seed(s), of the images alone; a second seed shows what the trainings add.",
        # 1.96 sqrt(500 / I) is just below 0.5 with 7683 images.
        "C - R: ±1.00 AP with 4 seed(s); ±0.5 takes 7683 such images with these seeds.",
        "D - R: ±1.00 AP with 2 seed(s); ±0.5 takes more of both.",
    ]


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
    assert difference["high"] < 0
    assert (output / "differences.md").read_text().count("\n") == 4
    assert (output / "forest.png").stat().st_size > 1000
    assert run("tools/compare.py", stored.folder, "--reference", "none", "--output", output) == 2
    assert "--reference none: not one of whole, some parts." in capsys.readouterr().err
