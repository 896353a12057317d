"""CLQ and related one-stage detectors for Detectron2.

Importing this package registers the meta-architectures ``CLQ`` and ``FCOS`` and the backbones of this project with
Detectron2. It may be imported before or after Detectron2.
"""

import importlib
from typing import TYPE_CHECKING

from clq.utils import early_signals

__version__ = "0.1.0"  # pyproject.toml reads it here, without importing anything

early_signals.install()  # before the imports that take seconds

if TYPE_CHECKING or not early_signals.is_clq_command():
    from clq.library import *  # noqa: F403
    from clq.library import __all__ as __all__
else:  # `clq --help` is to be instant, and `clq doctor` has to work where the library cannot be imported

    def __getattr__(name: str) -> object:
        if not name.startswith("_"):
            library = importlib.import_module("clq.library")
            if name in library.__all__:
                return getattr(library, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
