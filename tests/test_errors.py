"""Exceptions that Detectron2 raises for values it does not accept become a UserError; others do not."""

import pytest
from clq.errors import UserError, blamed_on


def test_a_value_that_detectron2_does_not_accept_is_blamed_on_the_keys():
    with (
        pytest.raises(UserError, match=r"^SOLVER\.X: Detectron2 refuses these values \(KeyError 'y'\)"),
        blamed_on("SOLVER.X"),
    ):
        {}["y"]


def test_other_failures_keep_their_type():
    with pytest.raises(RuntimeError), blamed_on("SOLVER.X"):
        raise RuntimeError
