"""Random states of Python, numpy and torch that follow from a key, whatever was drawn before."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def set_random_states(*key: int, all_devices: bool = False) -> None:
    """Sets the states of ``random``, ``numpy.random`` and torch's default generators.

    Detectron2's ``seed_all_rng`` takes one 32-bit seed, of which every 77,000 samples two would be expected to agree.
    It also sets an environment variable at every call, and glibc never frees the value that it replaces.

    Args:
        key: non-negative integers. Two keys give the same states if they differ only in zeros at the end, so the
            entries that tell uses apart come first.
        all_devices: whether to set torch's generators of all devices, rather than only the one of the CPU.
    """
    words = np.random.SeedSequence(key).generate_state(8)
    random.seed(words.tobytes())
    np.random.seed(words)
    (torch if all_devices else torch.default_generator).manual_seed(int(words.view(np.uint64)[0]))


@contextlib.contextmanager
def random_states(*key: int) -> Iterator[None]:
    """Runs the enclosed code with the states of :func:`set_random_states` on the CPU, and restores those before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        set_random_states(*key)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
