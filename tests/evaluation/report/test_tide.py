"""TIDE's kinds by hand, and tidecv's own numbers on a recorded set."""

import pytest
from clq.evaluation.report.matching import assign
from clq.evaluation.report.tide import error_costs, find_errors
from made_runs import BOX, REFERENCES, found, narrow, recorded, run


def errors_of(made):
    assigned = assign(made, 0.5)
    errors = find_errors(made, assigned)
    return errors, error_costs(made, assigned, errors)


def test_each_kind():
    far, apart = [300, 300, 100, 100], [300, 0, 100, 100]
    objects = [(0, 0, BOX), (0, 0, apart), (0, 1, far), (1, 1, BOX)]
    made = run(
        objects,
        [
            found(0, 0, BOX, 0.9),
            found(0, 0, narrow(0.8), 0.8),  # again
            found(0, 0, narrow(0.4, 300), 0.7),  # the cat on the right, badly
            found(0, 0, far, 0.6),  # a dog, taken for a cat
            found(0, 0, narrow(0.3, 300, 300), 0.5),  # the same, badly
            found(0, 1, [150, 0, 30, 30], 0.4),  # nothing
        ],
        images=2,
    )
    errors, costs = errors_of(made)
    assert errors.kind.tolist() == ["", "Dupe", "Loc", "Cls", "Both", "Bkg"]
    assert errors.truth.tolist() == [-1, -1, 1, 2, -1, -1] and errors.mends.tolist() == [0, 0, 1, 1, 0, 0]
    assert errors.missed.tolist() == [False, False, False, True]  # the others are explained by Loc and Cls
    # Cats: one of two is found first, so 51 of 101 recalls have precision 1. Dogs: none of two.
    assert costs["AP50"] == pytest.approx(100 * (51 / 101) / 2)
    # With the class of the fourth detection right, one of two dogs is found, before the false alarm.
    assert costs["Cls"] == pytest.approx(100 * (51 / 101) / 2)
    # With the third detection right, both cats are found: the second at precision 2/3.
    assert costs["Loc"] == pytest.approx(100 * (50 / 101 * 2 / 3) / 2)
    assert costs["Dupe"] == costs["Bkg"] == costs["Both"] == costs["Miss"] == 0
    assert costs["FalseNeg"] == pytest.approx(100 * (1 + 0) / 2 - costs["AP50"])


def test_of_two_errors_about_an_object_only_the_better_one_is_corrected():
    made = run([(0, 0, BOX)], [found(0, 0, narrow(0.4), 0.9), found(0, 0, narrow(0.45), 0.8)], names=("cat",))
    errors, costs = errors_of(made)
    assert errors.kind.tolist() == ["Loc", "Loc"] and errors.mends.tolist() == [True, False]
    assert costs["AP50"] == 0 and costs["Loc"] == pytest.approx(100)


def test_as_tidecv():
    errors, costs = errors_of(recorded())
    for kind, value in REFERENCES["references"]["tidecv"]["costs"].items():
        assert costs[kind] == pytest.approx(value, abs=1e-6), kind  # the issue asks for 0.1
    counts = {kind: int((errors.kind == kind).sum()) for kind in ("Cls", "Loc", "Both", "Dupe", "Bkg")}
    assert {**counts, "Miss": int(errors.missed.sum())} == REFERENCES["references"]["tidecv"]["counts"]


def test_nothing_detected_and_nothing_to_detect():
    errors, costs = errors_of(run([(0, 0, BOX)], []))
    assert errors.missed.tolist() == [True] and costs["AP50"] == 0
    errors, costs = errors_of(run([], [found(0, 0, BOX, 0.5)]))
    assert errors.kind.tolist() == ["Bkg"] and costs["AP50"] == 0
