"""Thresholds of classes, from a file."""

import json

import pytest
from clq.errors import UserError
from clq.inference.thresholds import read_thresholds

NAMES = ("cat", "dog", "cow")


def test_classes_that_the_file_does_not_name_have_the_default(tmp_path):
    (tmp_path / "t.json").write_text('{"dog": 0.75, "cow": 0}')
    assert read_thresholds(str(tmp_path / "t.json"), NAMES, 0.5).tolist() == [0.5, 0.75, 0]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"dgo": 0.5}, "has no class dgo; did you mean dog?"),
        ({"dog": 1.5}, "dog: must be a number between 0 and 1"),
        ({"dog": "high"}, "dog: must be a number between 0 and 1"),
        ([0.5], "must hold an object"),
    ],
)
def test_a_wrong_file_is_refused(content, message, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as e:
        read_thresholds(str(tmp_path / "t.json"), NAMES, 0.5)
    assert message in str(e.value) and "t.json" in str(e.value)
