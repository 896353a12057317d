"""Files of other code bases: what is read from them, and how messages show it."""

import pytest
import torch
from clq.checkpoint.foreign import brief, listed, weights_of
from clq.errors import UserError


def test_messages_show_the_first_names_and_the_start_of_a_value():
    assert listed(["a", "b\n", ""]) == "a, 'b\\n', ''"
    assert listed(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 2 more"
    assert brief([1]) == "[1]"
    assert brief("x" * 300) == "'" + "x" * 199 + "..."


# How an error describes a tensor that cannot be a weight -> such a tensor.
ODD = {
    "a sparse_coo tensor": lambda: torch.eye(3).to_sparse(),
    "a sparse_csr tensor": lambda: torch.eye(3).to_sparse_csr(),
    "a tensor without values .meta.": lambda: torch.ones(3, device="meta"),
    "of quint8": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    "of complex64": lambda: torch.ones(3, dtype=torch.complex64),
    "of int64": lambda: torch.ones(3, dtype=torch.int64),
    "of bool": lambda: torch.ones(3, dtype=torch.bool),
    "of float8_e5m2": lambda: torch.ones(3).to(torch.float8_e5m2),
}


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:.*quantize")
@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("key", ["bbox_head.atss_cls.bias", "backbone.bn1.num_batches_tracked"])
def test_tensors_that_cannot_be_weights_are_refused(what, key):
    if what == "of int64" and key.endswith("num_batches_tracked"):
        return
    with pytest.raises(UserError, match=rf"^a\.pth: {key} is {what}.*; save the weights as plain float32 tensors\.$"):
        weights_of("a.pth", {"state_dict": {key: ODD[what]()}}, "MMDetection")
