"""What is remembered of a json of annotations, and when it is read again."""

import json
import os
from pathlib import Path

import pytest
from clq.data import summaries
from clq.data.datasets import class_names, register_coco_json, summary_of
from clq.data.formats import readers
from clq.data.formats.coco import Content
from clq.data.formats.findings import Findings
from clq.data.summaries import Summary, summarize
from clq.utils.cache import cache_folder

BOX = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
IMAGE = {"id": 5, "file_name": "a.png", "width": 20, "height": 10}
ODD = {**BOX, "id": 2, "iscrowd": None}
EXPECTED = Summary(["cat", "dog"], True, [5], ["a.png"], [20], [10], [2], [2])


@pytest.fixture
def reads(monkeypatch, tmp_path):
    """The json files that are read, not remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths, read = [], readers.read_coco_json

    def spy(path, name):
        paths.append(os.path.basename(path))
        return read(path, name)

    monkeypatch.setattr(readers, "read_coco_json", spy)
    return paths


def test_a_summary_counts_by_image_what_is_to_be_found_and_what_is_trained_on():
    images = [IMAGE, {**IMAGE, "id": 6, "file_name": "b.png"}]
    boxes = [
        [1, 2, 3, 4],
        [1, 2, 0, 4],
        [-3, 2, 3, 4],
        [-2, 2, 3, 4],
        [20, 2, 3, 4],
        [19, 9, 3, 4],
    ]  # 1, -2 and 19 in it
    annotations = [{**BOX, "id": i, "bbox": box} for i, box in enumerate(boxes, 1)]
    annotations += [{**BOX, "id": 9, "image_id": 6, "iscrowd": 1}]
    summary = summarize(Content([{"id": 7, "name": "dog"}], images, annotations))
    assert summary == Summary(["dog"], True, [5, 6], ["a.png", "b.png"], [20, 20], [10, 10], [6, 0], [3, 0])
    assert not summarize(Content([{"id": 7, "name": "dog"}], images, None)).has_annotations


def test_a_json_is_read_again_only_when_it_or_what_is_asked_of_it_has_changed(make, reads):
    entry = make("pets", annotations=[BOX, ODD])
    register_coco_json([entry])
    notes = []
    for _ in range(2):
        findings = Findings("pets")
        assert summary_of("pets", findings) == EXPECTED
        notes.append(findings.notes)
    assert reads == ["pets.json"] and notes[0] == notes[1] != {}  # the warnings are the same
    assert class_names("pets") == ["cat", "dog"] and reads == ["pets.json"]
    register_coco_json([entry], skip=True)
    assert summary_of("pets", Findings("pets", skip=True)) == EXPECTED
    assert len(reads) == 2
    make("pets", annotations=[BOX])
    assert summary_of("pets", Findings("pets", skip=True)).found == [1]
    assert len(reads) == 3


def test_a_json_with_faults_is_read_each_time(make, reads):
    register_coco_json([make("pets", annotations=[BOX, {**BOX, "id": 2, "iscrowd": "0"}])], skip=True)
    for _ in range(2):
        findings = Findings("pets", skip=True)
        assert summary_of("pets", findings).found == [1]
        assert len(findings.left_out) == 1
    assert len(reads) == 2


def test_what_another_version_has_found_is_not_used(make, reads, monkeypatch):
    register_coco_json([make("pets", annotations=[BOX, ODD])])
    summary_of("pets", Findings("pets"))
    monkeypatch.setattr(summaries, "_version", lambda: "another")
    assert summary_of("pets", Findings("pets")) == EXPECTED
    assert len(reads) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda findings: findings.pop("summary"),
        lambda findings: findings["summary"].pop("ids"),
        lambda findings: findings["summary"]["ids"].append(6),
        lambda findings: findings.update(notes=[[1]]),
        lambda findings: findings.update(stamp=None),
    ],
)
def test_damaged_memory_is_not_used(make, reads, change):
    register_coco_json([make("pets", annotations=[BOX, ODD])])
    summary_of("pets", Findings("pets"))
    (name,) = os.listdir(cache_folder("annotations"))
    path = Path(cache_folder("annotations"), name)
    content = json.loads(path.read_text())
    change(content["findings"])
    path.write_text(json.dumps(content))
    assert summary_of("pets", Findings("pets")) == EXPECTED
    assert len(reads) == 2
