"""Reports what is installed, whether it works, and how to fix what does not: ``clq doctor``, ``python -m clq.doctor``.

Nothing but the standard library is imported at module level, here and in what this imports, because this module has to
work in broken environments.
"""

import argparse
import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import io
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

from clq.utils.cli import run_cli

INSTALL = "run make .venv or, in your own environment, pip install --upgrade "
PACKAGES = {  # distribution name: module to import. torch and torchvision are checked separately, before these.
    "numpy": "numpy",
    "Pillow": "PIL",
    "opencv-python-headless": "cv2",
    "matplotlib": "matplotlib",
    "fvcore": "fvcore",
    "pycocotools": "pycocotools.mask",
}


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: name of what was checked.
        found: what the check found, or the error that it ran into.
        fix: what the user can do about the problem; empty when there is no problem.
    """

    name: str
    found: str
    fix: str = ""


def run_check(name: str, attempt: Callable[[], str], fix: str) -> Check:
    """Calls ``attempt`` and returns what it found or, if it raised any exception, that exception and ``fix``."""
    try:
        return Check(name, attempt())
    # A torchvision that was built for another torch raises RuntimeError; a missing shared library raises OSError.
    except Exception as e:
        return Check(name, f"{type(e).__name__}: {' '.join(str(e).split())}", fix)


def diagnose() -> list[Check]:
    """Runs the checks. Those whose requirements turned out to be broken are left out."""
    checks = [
        Check("python", f"{'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}"),
        run_check("torch", partial(find_package, "torch"), INSTALL + "torch torchvision"),
        run_check("torchvision", partial(find_package, "torchvision"), torchvision_fix()),
        *(run_check(name, partial(find_package, name, module), INSTALL + name) for name, module in PACKAGES.items()),
        run_check("detectron2", find_detectron2, detectron2_fix()),
    ]
    if _detectron2_folders():
        checks.append(run_check("detectron2 ops", find_compiled_ops, detectron2_fix()))
    broken = {check.name for check in checks if check.fix}
    if "torch" not in broken:
        fix = "update the driver, or install a torch that was built for the CUDA version that nvidia-smi shows"
        checks += [run_check("GPU", find_gpu, fix), run_check("bfloat16 on CPU", find_bf16, INSTALL + "torch")]
    if not broken & {"torch", "torchvision"}:
        for device in ["cpu", *(["cuda"] if _torch().cuda.is_available() else [])]:
            checks.append(run_check(f"NMS, {device}", partial(try_nms, device), torchvision_fix()))
            checks.append(run_check(f"deform_conv2d, {device}", partial(try_deform_conv, device), torchvision_fix()))
    if not broken - {"detectron2 ops"}:
        attempt = partial(find_package, "clq-detectron2", "clq.modeling.meta_arch.clq")
        checks.append(run_check("clq", attempt, "install the project again, with pip install --no-deps"))
    return checks


def find_package(distribution: str, module: str = "") -> str:
    """Imports a package and returns its version.

    Args:
        distribution: name under which the package is installed.
        module: name of the module to import; by default that of the distribution.
    """
    imported = importlib.import_module(module or distribution)
    return getattr(imported, "__version__", "") or _installed_version(distribution)


def _installed_version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "version unknown"


def _torch() -> ModuleType:
    return importlib.import_module("torch")


def torchvision_fix() -> str:
    """Returns how to install the torchvision built for the installed torch, which is 0.(N + 15) for torch 2.N."""
    major, minor, *_ = (_installed_version("torch") + "..").split(".")
    if major != "2":
        return INSTALL + "torch torchvision"
    return f'{INSTALL}"torchvision==0.{int(minor) + 15}.*" (the one built for torch 2.{minor})'


def find_detectron2() -> str:
    """Imports the parts of Detectron2 that CLQ uses, and returns its version and folder.

    Raises:
        ImportError: Detectron2, or a package that it needs, is not installed.
    """
    if not _detectron2_folders():
        raise ImportError("not installed")
    for module in ("clq.compat", "detectron2.engine", "detectron2.evaluation", "detectron2.utils.visualizer"):
        importlib.import_module(module)
    detectron2 = importlib.import_module("detectron2")
    return f"{detectron2.__version__}, {detectron2.__path__[0]}"


def find_compiled_ops() -> str:
    """Reports whether Detectron2's own C++/CUDA ops are available.

    CLQ does not need them, but some releases of Detectron2 cannot be imported when their ops are unusable.

    Raises:
        ImportError: the ops were compiled for another version of torch or Python.
    """
    if not _compiled_ops_exist():
        return "none: CLQ does not need them, but COCO evaluation is somewhat slower without them"
    _torch()  # loads the shared libraries that the ops are linked against
    importlib.import_module("detectron2._C")
    return "available"


def _detectron2_folders() -> list[str]:
    spec = importlib.util.find_spec("detectron2")
    return list(spec.submodule_search_locations or ()) if spec else []


def _compiled_ops_exist() -> bool:
    """Returns whether ``detectron2._C`` exists on disk; ``clq.compat`` may have replaced the module in memory."""
    return importlib.machinery.PathFinder.find_spec("detectron2._C", _detectron2_folders()) is not None


def detectron2_fix() -> str:
    """Returns how to get a Detectron2 that works."""
    if not _detectron2_folders():
        return "run make .venv, or build Detectron2 from its repository for the torch that you have"
    if _compiled_ops_exist():
        return "build Detectron2 again from its repository, for the installed torch and Python"
    return "fix what is broken above; if nothing is, install Detectron2 again"


def find_gpu() -> str:
    """Returns the names of the GPUs and their memory.

    Raises:
        RuntimeError: an NVIDIA driver is installed, but torch finds no GPU.
    """
    cuda = _torch().cuda
    if cuda.is_available():
        gpus = [cuda.get_device_properties(i) for i in range(cuda.device_count())]
        return ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus)
    if shutil.which("nvidia-smi"):
        built_for = f"CUDA {_torch().version.cuda}" if _torch().version.cuda else "the CPU only"
        raise RuntimeError(f"an NVIDIA driver is installed, but torch, which was built for {built_for}, finds no GPU")
    return "none: everything runs on the CPU"


def find_bf16() -> str:
    """Reports whether this CPU has bfloat16 instructions, without which mixed precision saves no time on it."""
    torch = _torch()
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "supported"
    return "not supported: leave SOLVER.AMP.ENABLED False when training on this CPU"


def try_nms(device: str) -> str:
    """Runs class-wise NMS on three boxes.

    The second box has a higher score than the first and an IoU of 0.8 with it, so it suppresses the first. The third
    box is kept because it is of another class.

    Args:
        device: name of the device that NMS runs on.

    Raises:
        RuntimeError: the op is missing or keeps the wrong boxes.
    """
    torch, ops = _torch(), importlib.import_module("torchvision.ops")
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 8.0]], device=device)
    scores = torch.tensor([0.7, 0.9, 0.8], device=device)
    kept = ops.batched_nms(boxes, scores, torch.tensor([0, 0, 1], device=device), 0.5).tolist()
    if kept != [1, 2]:
        raise RuntimeError(f"kept boxes {kept} instead of [1, 2]")
    return "works"


def try_deform_conv(device: str) -> str:
    """Compares a deformable convolution whose offsets are 0 with the ordinary convolution that it should equal.

    Args:
        device: name of the device that the convolutions run on.

    Raises:
        RuntimeError: the op is missing, or its output or a gradient is wrong.
    """
    torch, ops = _torch(), importlib.import_module("torchvision.ops")
    x = torch.linspace(-1, 1, 2 * 6 * 6, device=device).reshape(1, 2, 6, 6).requires_grad_()
    weight = torch.linspace(-1, 1, 3 * 2 * 9, device=device).reshape(3, 2, 3, 3).requires_grad_()
    deformed = ops.deform_conv2d(x, torch.zeros(1, 18, 6, 6, device=device), weight, padding=1)
    plain = torch.nn.functional.conv2d(x, weight, padding=1)
    got, expected = ([y, *torch.autograd.grad(y.square().sum(), (x, weight))] for y in (deformed, plain))
    for what, a, b in zip(("output", "input gradient", "weight gradient"), got, expected, strict=True):
        if not torch.allclose(a, b, rtol=1e-2, atol=1e-2 * b.abs().max().item()):  # GPUs may multiply in TF32
            raise RuntimeError(f"its {what} differs from that of an ordinary convolution, which it should equal")
    return "works, forward and backward"


def report(checks: list[Check]) -> str:
    """Formats the checks as an aligned table, with the fix below each problem and a summary at the end."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.name:{width}}  {'BROKEN' if check.fix else 'ok':6}  {check.found}")
        if check.fix:
            lines.append(f"{'':{width}}  {'':6}  fix: {check.fix}")
    broken = [check.name for check in checks if check.fix]
    return "\n".join([*lines, f"Broken: {'; '.join(broken)}." if broken else "Everything that CLQ needs works."])


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report and returns the exit status: 1 if something is broken, else 0."""
    argparse.ArgumentParser(description="Report what is installed, whether it works, and how to fix it.").parse_args(
        argv
    )
    # The report describes the problems more clearly than what the imported packages print.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        checks = diagnose()
    print(report(checks))
    return int(any(check.fix for check in checks))


if __name__ == "__main__":
    run_cli(main)
