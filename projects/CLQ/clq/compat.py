"""Lets Detectron2 0.6 run without its compiled ops and with today's Pillow and numpy. All monkey-patching is here.

A Detectron2 that needs none of it (main, with ``detectron2._C``) is left exactly as it is.
"""

import builtins
import importlib
import importlib.util
import inspect
import re
import sys
import types

import numpy as np
import PIL.Image

# Modules of Detectron2 that CLQ's commands run and that, in 0.6, call Python's own types np.int, np.str and np.bool.
_MODULES_WITH_OLD_NAMES = "detectron2.data.build", "detectron2.data.datasets.pascal_voc", "detectron2.structures.masks"
_OLD_NAME = re.compile(r"\bnp\.(int|float|bool|str|object|complex)\b")


class _MissingOps(types.ModuleType):
    """Stands in for ``detectron2._C`` where it was not compiled: importable, and every op says what is missing."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"detectron2._C.{name}: this Detectron2 was installed without its compiled ops. CLQ does not need them; "
            "for models that do, build Detectron2 from its repository."
        )

    # Read by detectron2.utils.collect_env, which prints the environment at the start of every training.
    has_cuda = staticmethod(lambda: False)
    get_compiler_version = staticmethod(lambda: "none: detectron2 was installed without compiled ops")
    get_cuda_version = staticmethod(lambda: "none")


def has_compiled_ops() -> bool:
    """Whether Detectron2's own C++/CUDA ops are there (its fast COCO evaluation needs them)."""
    return not isinstance(sys.modules.get("detectron2._C"), _MissingOps) and (
        importlib.util.find_spec("detectron2._C") is not None
    )


def apply() -> None:
    """Makes ``import detectron2.<anything>`` work; idempotent.

    Raises:
        ImportError: Detectron2 is not installed.
    """
    if importlib.util.find_spec("detectron2") is None:
        raise ImportError(
            "Detectron2 is not installed: run `make .venv`, or see the README for installing it beside your own torch."
        )
    if not hasattr(PIL.Image, "LINEAR"):  # removed in Pillow 10; a default argument in Detectron2 0.6
        PIL.Image.LINEAR = PIL.Image.BILINEAR
    if "detectron2._C" not in sys.modules and importlib.util.find_spec("detectron2._C") is None:
        sys.modules["detectron2._C"] = _MissingOps("detectron2._C")


def restore_numpy_names() -> None:
    """Lets the modules of Detectron2 0.6 that still write ``np.int`` run with numpy >= 1.24; idempotent.

    numpy removed these second names of Python's own types (of which 2.0 gave ``np.bool`` to a type of its own).
    Detectron2's loader takes the AttributeError for a data set without class names, and leaves the number of objects
    of each class out of the log. Only the name ``np`` of these modules is replaced, and only where the module uses a
    name that the installed numpy lacks; numpy itself stays as it is.
    """
    for name in _MODULES_WITH_OLD_NAMES:
        module = importlib.import_module(name)
        try:
            source = inspect.getsource(module)
        except OSError:  # installed without it
            continue
        missing = {old for old in _OLD_NAME.findall(source) if old not in vars(module.np)}
        if missing:
            module.np = _numpy_with(missing)


def _numpy_with(old_names: set[str]) -> types.ModuleType:
    module = types.ModuleType(np.__name__, np.__doc__)
    vars(module).update(vars(np), **{name: getattr(builtins, name) for name in old_names})
    return module


apply()
