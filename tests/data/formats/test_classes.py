"""The choice of classes by name, and their order."""

import pytest
from clq.data.formats.classes import choose_classes
from clq.data.formats.findings import Findings
from clq.errors import UserError

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 9, "name": "emu"}]
ANNOTATIONS = [{"id": i, "category_id": c} for i, c in enumerate((3, 7, 9, 7.0, "7", None, 5), 1)] + ["odd"]


def choose(*classes, categories=CATEGORIES, **options):
    data = {"images": [], "categories": categories, "annotations": ANNOTATIONS}
    return choose_classes(data, classes, Findings("pets"), **options)


def test_classes_in_the_order_of_their_ids_keep_these():
    data = choose("cat", "dog")
    assert data["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert data["annotations"] == [a for a in ANNOTATIONS if a not in ({"id": 3, "category_id": 9},)]


def test_classes_in_another_order_are_numbered_anew():
    data = choose("dog", "cat")
    assert data["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert [a["category_id"] for a in data["annotations"][:3]] == [2, 1, 1]
    assert data["annotations"][3:] == ANNOTATIONS[4:]  # what has no usable category is left to the checks
    assert ANNOTATIONS[0] == {"id": 1, "category_id": 3}


def test_a_class_that_does_not_exist_is_refused_where_classes_are_listed():
    with pytest.raises(UserError, match=r"no class dgo, which is in DATASETS.CLASSES; did you mean dog"):
        choose("cat", "dgo")
    data = choose("cat", "dgo", listed=False)
    assert data["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dgo"}]
    assert data["annotations"][0] == {"id": 1, "category_id": 1}


def test_two_classes_of_a_chosen_name_are_refused():
    twice = [*CATEGORIES, {"id": 1, "name": "cat"}]
    with pytest.raises(UserError, match="two classes are called cat"):
        choose("cat", categories=twice)
    assert len(choose("dog", categories=twice)["categories"]) == 1


def test_without_a_choice_nothing_changes():
    assert choose()["annotations"] is ANNOTATIONS
