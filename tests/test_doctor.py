"""The doctor finds what is broken, names the fix, and works where nothing else can be imported."""

import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import detectron2
import pytest
import torch
import torchvision
from clq import doctor

SOURCE = str(Path(doctor.__file__).parents[1])


def run_doctor(*flags: str) -> subprocess.CompletedProcess:
    """Runs ``python FLAGS -m clq.doctor`` in a process that does not find nvidia-smi."""
    env = {**os.environ, "PATH": "", "PYTHONPATH": SOURCE}
    return subprocess.run([sys.executable, *flags, "-m", "clq.doctor"], env=env, capture_output=True, text=True)


def line(output: str, name: str) -> tuple[str, str]:
    """Returns the line of the report on ``name`` and the one after it."""
    lines = output.splitlines()
    (at,) = (i for i, text in enumerate(lines) if text.startswith(name + "  "))
    return lines[at], lines[at + 1]


def test_this_environment_works():
    result = run_doctor()
    assert result.returncode == 0, result.stdout
    assert torch.__version__ in line(result.stdout, "torch")[0]
    assert detectron2.__version__ in line(result.stdout, "detectron2")[0]
    assert "works, forward and backward" in line(result.stdout, "deform_conv2d, cpu")[0]
    assert "Everything that CLQ needs works." in result.stdout
    assert result.stderr == ""


def test_an_environment_without_any_package():
    result = run_doctor("-S")  # without site-packages
    assert result.returncode == 1, result.stderr
    found, fix = line(result.stdout, "torch")
    assert "BROKEN" in found and "pip install --upgrade torch torchvision" in fix
    found, fix = line(result.stdout, "detectron2")
    assert "not installed" in found and "make .venv" in fix
    assert "detectron2 ops" not in result.stdout


def test_detectron2_compiled_for_another_torch(tmp_path, monkeypatch, capsys):
    """The Detectron2 of this environment is replaced by one whose ops cannot be loaded."""
    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2/__init__.py").write_text("from . import _C\n")
    (tmp_path / "detectron2/_C.py").write_text("raise ImportError('undefined symbol: _ZN2at')\n")
    assert doctor.main([]) == 1
    report = capsys.readouterr().out
    for name in ("detectron2", "detectron2 ops"):
        found, fix = line(report, name)
        assert "BROKEN" in found and "undefined symbol: _ZN2at" in found
        assert "build Detectron2 again" in fix
    assert "Broken: detectron2; detectron2 ops." in report


def test_torchvision_built_for_another_torch(monkeypatch):
    def fail(name):
        raise RuntimeError("operator torchvision::nms\n does not exist")

    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.setattr(importlib.metadata, "version", {"torch": "2.14.1+cpu"}.__getitem__)
    check = doctor.run_check("torchvision", lambda: doctor.find_package("torchvision"), doctor.torchvision_fix())
    assert check.found == "RuntimeError: operator torchvision::nms does not exist"
    assert '"torchvision==0.29.*" (the one built for torch 2.14)' in check.fix


def test_torchvision_fix_without_torch(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert doctor.torchvision_fix().endswith("pip install --upgrade torch torchvision")


def test_a_driver_without_a_torch_that_uses_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", {"nvidia-smi": "/usr/bin/nvidia-smi"}.get)
    with pytest.raises(RuntimeError, match="torch, which was built for the CPU only, finds no GPU"):
        doctor.find_gpu()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.find_gpu().startswith("none")


def test_wrong_nms_is_detected(monkeypatch):
    monkeypatch.setattr(torchvision.ops, "batched_nms", lambda boxes, *_: torch.arange(len(boxes)))
    with pytest.raises(RuntimeError, match=r"kept boxes \[0, 1, 2\] instead of \[1, 2\]"):
        doctor.try_nms("cpu")


@pytest.mark.parametrize(
    ("spoil", "what"), [(lambda y: y * 1.1, "output"), (lambda y: y.detach() * 2 - y, "input gradient")]
)
def test_wrong_deformable_convolution_is_detected(monkeypatch, spoil, what):
    right = torchvision.ops.deform_conv2d
    monkeypatch.setattr(torchvision.ops, "deform_conv2d", lambda *a, **k: spoil(right(*a, **k)))
    with pytest.raises(RuntimeError, match=what):
        doctor.try_deform_conv("cpu")


def test_the_report_is_aligned_and_ends_with_a_summary():
    checks = [doctor.Check("torch", "2.14.1"), doctor.Check("numpy", "no module", "pip install numpy")]
    assert doctor.report(checks).splitlines() == [
        "torch  ok      2.14.1",
        "numpy  BROKEN  no module",
        "               fix: pip install numpy",
        "Broken: numpy.",
    ]
    assert doctor.report(checks[:1]).splitlines()[-1] == "Everything that CLQ needs works."
