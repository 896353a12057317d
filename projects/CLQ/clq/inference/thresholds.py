"""The lowest score of a detection of each class."""

import difflib
from collections.abc import Sequence

import numpy as np

from clq.data.formats.values import is_number
from clq.errors import UserError
from clq.utils.files import read_json


def read_thresholds(path: str, class_names: Sequence[str], default: float) -> np.ndarray:
    """Reads a json file such as ``{"cat": 0.35, "dog": 0.5}``.

    Args:
        path: the file.
        class_names: names of the K classes.
        default: threshold of the classes that the file does not have.

    Returns:
        The threshold of each class, (K,) float32, as scores are.

    Raises:
        UserError: the file cannot be read, holds something else, or names a class that the detector does not have.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f'{path}: must hold an object such as {{"cat": 0.35, "dog": 0.5}}; write it again.')
    thresholds = np.full(len(class_names), default, np.float32)
    for name, value in content.items():
        if name not in class_names:
            near = difflib.get_close_matches(name, class_names, n=1, cutoff=0)
            raise UserError(f"{path}: the detector has no class {name}; did you mean {near[0]}?")
        if not is_number(value) or not 0 <= value <= 1:
            raise UserError(f"{path}: {name}: must be a number between 0 and 1.")
        thresholds[[known == name for known in class_names]] = value
    return thresholds
