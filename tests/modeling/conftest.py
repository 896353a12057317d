"""What the tests of the model's parts share."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors here are so small that several threads would be slower than one, by minutes on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
