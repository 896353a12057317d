import math

import pytest
from clq.config.key import Key, Names, Number, Numbers, OneOf
from clq.errors import UserError

NAN, INF = math.nan, math.inf
SIZE = Numbers(("height", "width"), Number(minimum=1), integers=True, may_be_empty=True)
FACTORS = Numbers(("lowest", "highest"), Number(minimum=0), ascending=True)


@pytest.mark.parametrize(
    ("values", "words", "accepted", "refused"),
    [
        (Number(minimum=1), "at least 1", [1, 2.5], [0.99, INF]),
        (Number(maximum=1), "at most 1", [1, -5], [1.01, -INF]),
        (Number(above=0), "above 0", [1e-9], [0, NAN]),
        (Number(below=1), "below 1", [-3, 0.99], [1.0, -INF]),
        (Number(minimum=0, maximum=0.5), "between 0 and 0.5", [0, 0.5], [-0.1, 0.6]),
        (Number(above=0, maximum=1), "above 0 and at most 1", [0.1, 1], [0, 1.1]),
        (Number(minimum=0, below=1), "at least 0 and below 1", [0, 0.9], [1, True]),
        (Number(minimum=1, also=(-1,)), "at least 1, or -1", [1, -1], [0, -2, "1", None]),
        (SIZE, "[height, width], integers that are at least 1, or []", [[2, 1], (3, 4), []], [[2], [2, 0], [2, 2.0]]),
        (
            FACTORS,
            "[lowest, highest], finite numbers that are at least 0, in ascending order",
            [[0.5, 2], [1.0, 1.0]],
            [[], [2, 0.5], [-1, 1], [0, INF], [0, "1"], "01", 3],
        ),
        (Names(), "a list of one or more different names", [["p3"], ("p3", "p4")], [[], [3], [""], ["p3", "p3"], "p3"]),
        (Names(may_be_empty=True), "a list of different names", [[], ["p3"]], [[3], ["p3", "p3"]]),
        (OneOf({"a": "A.", "": "None."}), "one of a, ''", ["a", ""], ["b", None, 3]),
    ],
)
def test_values(values, words, accepted, refused):
    assert values.describe() == words
    assert [value for value in accepted if not values.accepts(value)] == []
    assert [value for value in refused if values.accepts(value)] == []


@pytest.mark.parametrize(
    ("default", "values", "value", "message"),
    [
        (9, Number(minimum=1), 0, "A.B 0: must be at least 1."),
        (9, Number(minimum=1), 2.5, "A.B 2.5: must be of type int, such as 9."),
        (0.5, Number(minimum=0), INF, "A.B inf: must be finite and at least 0."),
        (0.5, Number(minimum=0), None, "A.B None: must be of type float, such as 0.5."),
        (0.5, Number(minimum=0), True, "A.B True: must be of type float, such as 0.5."),
        (False, None, 0, "A.B 0: must be of type bool, such as False."),
        ("a", OneOf({"a": "A.", "b": "B."}), "c", "A.B c: must be one of a, b."),
        ([1.0, 1.0], FACTORS, (2.0, 1.0), "A.B [2.0, 1.0]: must be [lowest, highest], finite numbers that are .*"),
    ],
)
def test_a_refusal_names_the_key_the_value_and_what_it_must_be(default, values, value, message):
    with pytest.raises(UserError, match="^" + message.replace("[", r"\[")):
        Key("A.B", default, "A key.", values).check(value)


@pytest.mark.parametrize(("default", "value"), [(0.5, 1), ([1.0, 1.0], (0.5, 1)), (True, False), (3, -4)])
def test_values_of_a_kindred_type_are_accepted(default, value):
    Key("A.B", default, "A key.").check(value)


def test_numbers_that_must_be_distinct():
    pair = Numbers(("black", "white"), Number(minimum=-5), ascending=True, distinct=True)
    assert pair.accepts([0, 1]) and not pair.accepts([1, 1]) and not pair.accepts([1, 0])
    assert "all different" in pair.describe()
