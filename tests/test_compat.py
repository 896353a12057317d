"""Detectron2 imports before and after clq, with or without its compiled ops; a full one, and numpy, are left alone."""

import importlib
import importlib.machinery
import importlib.util
import subprocess
import sys
import types

import detectron2
import numpy as np
import pytest
from clq import compat

PARTS = "detectron2.engine, detectron2.evaluation, detectron2.utils.visualizer, detectron2.utils.collect_env"


@pytest.mark.parametrize("imports", [f"import clq, {PARTS}", f"import detectron2, clq, {PARTS}"])
def test_import_order(imports):
    use = "assert detectron2.modeling.META_ARCH_REGISTRY.get('CLQ') is clq.CLQ"
    report = "assert 'detectron2' in detectron2.utils.collect_env.collect_env_info()"
    result = subprocess.run([sys.executable, "-c", f"{imports}; {use}; {report}"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def unimported(monkeypatch):
    """Undoes the import of ``detectron2._C``, or of its stand-in, until the test ends."""
    monkeypatch.setitem(sys.modules, "detectron2._C", None)
    monkeypatch.delitem(sys.modules, "detectron2._C")
    monkeypatch.setattr(detectron2, "_C", None, raising=False)
    monkeypatch.delattr(detectron2, "_C")
    return monkeypatch


def test_compiled_ops_on_disk_are_left_alone(unimported, tmp_path):
    (tmp_path / "_C.py").write_text("nms_rotated = 'the real op'\n")
    unimported.setattr(detectron2, "__path__", [str(tmp_path), *detectron2.__path__])
    compat.apply()
    assert "detectron2._C" not in sys.modules
    assert compat.has_compiled_ops()
    assert importlib.import_module("detectron2._C").nms_rotated == "the real op"


def test_imported_compiled_ops_are_left_alone(unimported):
    full = types.ModuleType("detectron2._C")
    full.__spec__ = importlib.machinery.ModuleSpec("detectron2._C", None)
    unimported.setitem(sys.modules, "detectron2._C", full)
    compat.apply()
    assert sys.modules["detectron2._C"] is full
    assert compat.has_compiled_ops()


def test_stand_in_is_made_once_and_says_what_is_missing(unimported):
    unimported.setattr(importlib.util, "find_spec", {"detectron2": "found"}.get)
    compat.apply()
    stand_in = sys.modules["detectron2._C"]
    compat.apply()
    assert sys.modules["detectron2._C"] is stand_in
    assert not compat.has_compiled_ops()
    with pytest.raises(AttributeError, match=r"detectron2\._C\.nms_rotated: .*without its compiled ops"):
        _ = stand_in.nms_rotated


def test_missing_detectron2_names_the_fix(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"make \.venv"):
        compat.apply()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Stands in for a module of Detectron2: imported from this content, with its name for numpy put right."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def module(name, content):
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\n{content}\n")
        monkeypatch.setattr(compat, "_MODULES_WITH_OLD_NAMES", (name,))
        compat.restore_numpy_names()
        return importlib.import_module(name)

    yield module
    for name in ("old_names", "new_names"):
        sys.modules.pop(name, None)


def test_removed_names_of_numpy_are_pythons_own_types(module):
    old = module("old_names", "def zeros():\n    return np.zeros(2, dtype=np.int), np.asarray(['a'], np.str)")
    numbers, letters = old.zeros()
    assert numbers.dtype.kind == "i" and letters.dtype.kind == "U"
    assert old.np.float64 is np.float64 and old.np.linalg is np.linalg  # all else is numpy's
    assert "int" not in vars(np) and "str" not in vars(np)  # which stays as it is, for everybody else
    first = old.np
    compat.restore_numpy_names()
    assert old.np is first


def test_a_module_without_them_is_left_alone(module):
    new = module("new_names", "def zeros():\n    return np.zeros(2, dtype=int), np.int64(1), np.float32(1)")
    assert new.np is np
