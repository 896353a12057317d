import clq
import pytest
from clq.errors import UserError


@pytest.mark.parametrize(
    "value, message",
    [
        ("SOLVER: {IMS_PER_BATCH: null}", r"^SOLVER\.IMS_PER_BATCH None: must be of type int, such as 16\.$"),
        ("MODEL: {CLQ: {TOWERS: }}", r"^MODEL\.CLQ\.TOWERS None: must be of type str"),
        (f"SOLVER: {{MAX_ITER: {10**30}}}", r"^SOLVER\.MAX_ITER: has an integer of 100 bits"),
        (f"SOLVER: {{MAX_ITER: 0x{'f' * 5000}}}", r"^SOLVER\.MAX_ITER: has an integer of 20000 bits"),
        (f"SOLVER: {{STEPS: {'[' * 12}{']' * 12}}}", r"^SOLVER\.STEPS: is nested more than 10 deep"),
    ],
)
def test_values_that_no_reader_expects_are_refused(value, message, tmp_path):
    (tmp_path / "a.yaml").write_text(value)
    with pytest.raises(UserError, match=message):
        clq.setup_cfg(str(tmp_path / "a.yaml"), ["MODEL.DEVICE", "cpu"])


def test_keys_that_are_empty_by_default_may_be_empty():
    assert (
        clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", "SOLVER.WEIGHT_DECAY_BIAS", None]).SOLVER.WEIGHT_DECAY_BIAS is None
    )
    assert clq.setup_cfg(None, ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 2**62]).SOLVER.MAX_ITER == 2**62
