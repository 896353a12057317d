"""Dotted keys of nested configs."""

import pytest
from clq.utils.config_tree import get_key
from detectron2.config import CfgNode


def test_dotted_keys_name_values_and_groups():
    cfg = CfgNode({"A": {"B": {"C": 2}}, "D": [1]})
    assert get_key(cfg, "A.B.C") == 2
    assert get_key(cfg, "A.B") is cfg.A.B
    assert get_key(cfg, "D") == [1]
    with pytest.raises(KeyError):
        get_key(cfg, "A.X.C")
