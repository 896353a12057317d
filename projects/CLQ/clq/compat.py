"""Makes Detectron2 0.6 work without its compiled ops and with current versions of Pillow and numpy.

All monkey-patching of the project is in this module. A Detectron2 that needs no patch (the main branch with
``detectron2._C``) is left unchanged.
"""

import builtins
import importlib
import importlib.util
import inspect
import re
import sys
import types
from typing import NoReturn

import numpy as np
import PIL.Image

# Modules of Detectron2 that CLQ's commands use and that, in version 0.6, still use np.int, np.str and np.bool.
_MODULES_WITH_OLD_NAMES = "detectron2.data.build", "detectron2.data.datasets.pascal_voc", "detectron2.structures.masks"
_OLD_NAME = re.compile(r"\bnp\.(int|float|bool|str|object|complex)\b")


class _MissingOps(types.ModuleType):
    """Replaces ``detectron2._C`` where it was not compiled. It can be imported; using an op raises an explanation."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"detectron2._C.{name}: this Detectron2 was installed without its compiled ops. CLQ does not need them; "
            "for models that do, build Detectron2 from its repository."
        )

    # detectron2.utils.collect_env calls these when it prints the environment at the start of every training.
    has_cuda = staticmethod(lambda: False)
    get_compiler_version = staticmethod(lambda: "none: detectron2 was installed without compiled ops")
    get_cuda_version = staticmethod(lambda: "none")


def has_compiled_ops() -> bool:
    """Returns whether Detectron2's own C++/CUDA ops are available. Its fast COCO evaluation needs them."""
    return not isinstance(sys.modules.get("detectron2._C"), _MissingOps) and (
        importlib.util.find_spec("detectron2._C") is not None
    )


def apply() -> None:
    """Makes every module of Detectron2 importable. Calling it again has no effect.

    Raises:
        ImportError: Detectron2 is not installed.
    """
    if importlib.util.find_spec("detectron2") is None:
        raise ImportError(
            "Detectron2 is not installed: run `make .venv`, or build it from its repository for your torch."
        )
    if not hasattr(PIL.Image, "LINEAR"):  # Pillow 10 removed it, but Detectron2 0.6 has it as a default argument
        PIL.Image.LINEAR = PIL.Image.BILINEAR  # type: ignore[attr-defined]
    if "detectron2._C" not in sys.modules and importlib.util.find_spec("detectron2._C") is None:
        sys.modules["detectron2._C"] = _MissingOps("detectron2._C")


def restore_numpy_names() -> None:
    """Makes the modules of Detectron2 0.6 that use ``np.int`` and the like work with numpy >= 1.24.

    numpy 1.24 removed these aliases of Python's built-in types, and numpy 2.0 reused ``np.bool`` for a type of its own.
    Detectron2's data loader mistakes the resulting AttributeError for a data set without class names, and omits the
    number of objects of each class from the log. This function replaces only the name ``np`` in these modules, and
    only where a module uses an alias that the installed numpy lacks. numpy itself is not changed. Calling it again has
    no effect.
    """
    for name in _MODULES_WITH_OLD_NAMES:
        module = importlib.import_module(name)
        try:
            source = inspect.getsource(module)
        except OSError:  # Detectron2 was installed without its source files
            continue
        missing = {old for old in _OLD_NAME.findall(source) if old not in vars(module.np)}
        if missing:
            module.np = _numpy_with(missing)  # type: ignore[attr-defined]


def _numpy_with(old_names: set[str]) -> types.ModuleType:
    """A copy of the module numpy that also has these aliases of Python's built-in types."""
    module = types.ModuleType(np.__name__, np.__doc__)
    vars(module).update(vars(np), **{name: getattr(builtins, name) for name in old_names})
    return module


apply()
