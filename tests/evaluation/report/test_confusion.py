"""Confusion matrices by hand, and as scikit-learn counts recorded pairs."""

from clq.evaluation.report.confusion import confusion
from clq.evaluation.report.matching import assign
from made_runs import BOX, REFERENCES, found, narrow, recorded, run


def test_as_scikit_learn():
    made = recorded()
    got = confusion(made, assign(made, 0.5), REFERENCES["threshold"])
    assert got.counts.tolist() == REFERENCES["references"]["confusion"]


def test_by_hand():
    objects = [
        (0, 0, BOX),
        (0, 1, [300, 0, 100, 100]),
        (0, 1, [0, 300, 100, 100]),
        (0, 0, [300, 300, 100, 100], "crowd"),
    ]
    results = [
        found(0, 1, BOX, 0.9),  # a dog where the cat is
        found(0, 0, narrow(0.6), 0.8),  # the cat, which is right although its box is worse
        found(0, 0, [300, 0, 100, 100], 0.7),  # a cat where the dog is
        found(0, 1, [0, 300, 100, 100], 0.3),  # below the threshold
        found(0, 0, [320, 320, 10, 10], 0.9),  # in the crowd
    ]
    made = run(objects, results)
    got = confusion(made, assign(made, 0.5), 0.5)
    assert got.counts.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert got.largest(["cat", "dog"], 5) == [("dog", "cat", 1)]
