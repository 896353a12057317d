"""Lets Detectron2 0.6 import without its compiled ops and with Pillow >= 10. The only monkey-patching in the tree.

A full Detectron2 (0.6 or main, with ``detectron2._C``) is left exactly as it is.
"""

import importlib.util
import sys
import types

import PIL.Image


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


apply()
