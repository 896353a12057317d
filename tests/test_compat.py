"""Detectron2 can be imported before and after clq; a Detectron2 with compiled ops, and numpy, are not changed."""

import importlib
import importlib.machinery
import importlib.util
import subprocess
import sys
import types

import clq
import detectron2
import numpy as np
import pytest
from clq import compat

PARTS = "detectron2.engine, detectron2.evaluation, detectron2.utils.visualizer, detectron2.utils.collect_env"


def test_clq_can_be_imported_before_detectron2():
    """The other order, in this process: tests/conftest.py imports clq first."""
    for part in PARTS.split(", "):
        importlib.import_module(part)
    assert detectron2.modeling.META_ARCH_REGISTRY.get("CLQ") is clq.CLQ
    assert "detectron2" in detectron2.utils.collect_env.collect_env_info()


def test_clq_can_be_imported_after_detectron2():
    use = "assert detectron2.modeling.META_ARCH_REGISTRY.get('CLQ') is clq.CLQ"
    result = subprocess.run(
        [sys.executable, "-c", f"import detectron2, clq, {PARTS}; {use}"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture
def unimported(monkeypatch):
    """Removes ``detectron2._C``, or what replaces it, from the imported modules for the duration of a test."""
    monkeypatch.setitem(sys.modules, "detectron2._C", None)
    monkeypatch.delitem(sys.modules, "detectron2._C")
    monkeypatch.setattr(detectron2, "_C", None, raising=False)
    monkeypatch.delattr(detectron2, "_C")
    return monkeypatch


def test_compiled_ops_that_are_installed_are_not_replaced(unimported, tmp_path):
    (tmp_path / "_C.py").write_text("nms_rotated = 'the real op'\n")
    unimported.setattr(detectron2, "__path__", [str(tmp_path), *detectron2.__path__])
    compat.apply()
    assert "detectron2._C" not in sys.modules
    assert compat.has_compiled_ops()
    assert importlib.import_module("detectron2._C").nms_rotated == "the real op"


def test_compiled_ops_that_are_imported_are_not_replaced(unimported):
    full = types.ModuleType("detectron2._C")
    full.__spec__ = importlib.machinery.ModuleSpec("detectron2._C", None)
    unimported.setitem(sys.modules, "detectron2._C", full)
    compat.apply()
    assert sys.modules["detectron2._C"] is full
    assert compat.has_compiled_ops()


def test_missing_ops_are_replaced_once_and_explained_on_use(unimported):
    unimported.setattr(importlib.util, "find_spec", {"detectron2": "found"}.get)
    compat.apply()
    replacement = sys.modules["detectron2._C"]
    compat.apply()
    assert sys.modules["detectron2._C"] is replacement
    assert not compat.has_compiled_ops()
    with pytest.raises(AttributeError, match=r"detectron2\._C\.nms_rotated: .*without its compiled ops"):
        _ = replacement.nms_rotated


def test_the_error_for_a_missing_detectron2_names_the_fix(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"make \.venv"):
        compat.apply()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """``module(name, content)`` imports a module with this content in place of one of Detectron2, and patches it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def module(name, content):
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\n{content}\n")
        monkeypatch.setattr(compat, "_MODULES_WITH_OLD_NAMES", (name,))
        compat.restore_numpy_names()
        return importlib.import_module(name)

    yield module
    for name in ("old_names", "new_names"):
        sys.modules.pop(name, None)


def test_removed_aliases_of_numpy_are_pythons_own_types(module):
    old = module("old_names", "def zeros():\n    return np.zeros(2, dtype=np.int), np.asarray(['a'], np.str)")
    numbers, letters = old.zeros()
    assert numbers.dtype.kind == "i" and letters.dtype.kind == "U"
    assert old.np.float64 is np.float64 and old.np.linalg is np.linalg  # everything else is numpy's
    assert "int" not in vars(np) and "str" not in vars(np)  # numpy itself is not changed
    first = old.np
    compat.restore_numpy_names()
    assert old.np is first


def test_a_module_without_removed_aliases_is_not_changed(module):
    new = module("new_names", "def zeros():\n    return np.zeros(2, dtype=int), np.int64(1), np.float32(1)")
    assert new.np is np
