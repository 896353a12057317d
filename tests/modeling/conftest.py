"""Shared by the tests of the model's parts."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors here are tiny: more threads only wait for each other, for minutes on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
