import random

import numpy as np
import pytest
import torch
from clq.utils.random_states import random_states, set_random_states


def draw():
    return random.random(), np.random.uniform(), float(torch.rand(()))


def test_draws_follow_from_the_key_alone():
    set_random_states(3, 0, 5)
    first = draw()
    draw()
    set_random_states(3, 0, 5)
    assert draw() == first
    for key in ((3, 0, 6), (3, 1, 5), (4, 0, 5), (3, 0, 5 + 2**32)):
        set_random_states(*key)
        assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_the_states_before_are_restored_even_after_an_error():
    set_random_states(1)
    expected = draw(), draw()
    set_random_states(1)
    found = [draw()]
    with pytest.raises(ValueError, match="stop"), random_states(2):
        assert draw() not in expected
        raise ValueError("stop")
    assert (*found, draw()) == expected


def test_samples_leave_the_generators_of_other_devices_alone(monkeypatch):
    """A worker process must not touch CUDA, and torch.manual_seed would."""
    called = []
    monkeypatch.setattr(torch, "manual_seed", called.append)
    set_random_states(1)
    assert called == []
    set_random_states(1, all_devices=True)
    assert len(called) == 1
