"""What a file of weights may hold besides weights, and which values cannot be weights."""

import numpy as np
import pytest
import torch
from clq.checkpoint.content import checkpoint_of
from clq.errors import UserError

W = torch.ones(2)


def test_layouts_of_other_projects():
    assert checkpoint_of({"w": W}, "a.pth", "a") == {"model": {"w": W}}
    found = checkpoint_of({"blobs": {"w": np.ones(2), "w_momentum": np.ones(2)}}, "a.pkl", "a")
    assert found["model"].keys() == {"w"}
    assert (found["__author__"], found["matching_heuristics"]) == ("Caffe2", True)
    found = checkpoint_of({"model_state": {"w": W, "n.num_batches_tracked": W}, "epoch": 1}, "a.pyth", "a")
    assert found == {"model": {"w": W}, "__author__": "pycls", "matching_heuristics": True}
    found = checkpoint_of({"model": {"w": np.ones(2, dtype=">f4")}, "__author__": "x", "iteration": 3}, "a.pkl", "a")
    assert (found["__author__"], found["iteration"]) == ("x", 3)
    assert found["model"]["w"].dtype == torch.float32
    assert found["model"]["w"].tolist() == [1, 1]


def test_what_detectron2_would_compare_is_plain():
    found = checkpoint_of({"model": {"w": W}, "__author__": W, "matching_heuristics": W}, "a.pth", "a")
    assert found == {"model": {"w": W}}


@pytest.mark.parametrize(
    "weights, message",
    [
        ({"w": np.array([None])}, "a: w is an array of object, which weights cannot be"),
        ({"w": np.array(["x"])}, "a: w is an array of <U1, which"),
        ({"w": np.ones(2, dtype="c8")}, "a: w is of complex64"),
        ({"w": W.to_sparse()}, "a: w is a sparse_coo tensor"),
        ({"w": W.to("meta")}, r"a: w is a tensor without values \(meta\)"),
        ({7: W}, "a: 7 is no name of a weight"),
        ({("x",): W}, "a: a tuple is no name of a weight"),
        ({"w\nv": W.to_sparse()}, r"a: w\\nv is a sparse_coo"),
        ({}, "a: holds no weights"),
        ([W], "a: holds no weights"),
        ({"w": "x"}, "a: holds no weights"),
    ],
)
def test_values_that_cannot_be_weights_are_named(weights, message):
    with pytest.raises(UserError, match=message):
        checkpoint_of({"model": weights}, "a.pth", "a")
