"""``python -m clq.doctor``: what is installed, whether it works, and how to mend what does not.

Nothing but the standard library is imported at module level: this has to run where the rest does not import.
"""

import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import io
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType

INSTALL = "make .venv, or into your own environment: pip install --upgrade "
PACKAGES = {  # distribution: module to import; torch and torchvision come first and are checked apart
    "numpy": "numpy",
    "Pillow": "PIL",
    "opencv-python-headless": "cv2",
    "matplotlib": "matplotlib",
    "fvcore": "fvcore",
    "pycocotools": "pycocotools.mask",
}


@dataclass(frozen=True)
class Check:
    """One line of the report. ``fix`` says how to mend it; empty where nothing is broken."""

    name: str
    found: str
    fix: str = ""


def run_check(name: str, attempt: Callable[[], str], fix: str) -> Check:
    """What ``attempt`` found; or, whatever it raised, that and the fix."""
    try:
        return Check(name, attempt())
    except Exception as e:  # a torchvision built for another torch raises RuntimeError, a missing library OSError
        return Check(name, f"{type(e).__name__}: {' '.join(str(e).split())}", fix)


def diagnose() -> list[Check]:
    """Runs every check that makes sense after the earlier ones."""
    checks = [
        Check("python", f"{'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}"),
        run_check("torch", partial(find_package, "torch"), INSTALL + "torch torchvision"),
        run_check("torchvision", partial(find_package, "torchvision"), torchvision_fix()),
        *(run_check(name, partial(find_package, name, module), INSTALL + name) for name, module in PACKAGES.items()),
        run_check("detectron2", find_detectron2, detectron2_fix()),
    ]
    if _detectron2_folders():
        checks.append(run_check("its compiled ops", find_compiled_ops, detectron2_fix()))
    broken = {check.name for check in checks if check.fix}
    if "torch" not in broken:
        fix = "update the driver, or install a torch built for the CUDA version that nvidia-smi shows"
        checks += [run_check("GPU", find_gpu, fix), run_check("bfloat16 on CPU", find_bf16, INSTALL + "torch")]
    if not broken & {"torch", "torchvision"}:
        for device in ["cpu", *(["cuda"] if _torch().cuda.is_available() else [])]:
            checks.append(run_check(f"NMS, {device}", partial(try_nms, device), torchvision_fix()))
            checks.append(run_check(f"deform_conv2d, {device}", partial(try_deform_conv, device), torchvision_fix()))
    if not broken - {"its compiled ops"}:
        attempt = partial(find_package, "clq-detectron2", "clq.modeling.meta_arch.clq")
        checks.append(run_check("clq", attempt, "install the project from its root: pip install --no-deps -e ."))
    return checks


def find_package(distribution: str, module: str = "") -> str:
    """Imports ``module`` (as the distribution, if not named) and returns its version."""
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
    """How to get the torchvision built for the torch that is there: 0.(N + 15) for torch 2.N."""
    major, minor, *_ = (_installed_version("torch") + "..").split(".")
    if major != "2":
        return INSTALL + "torch torchvision"
    return f'{INSTALL}"torchvision==0.{int(minor) + 15}.*" (the one built for torch 2.{minor})'


def find_detectron2() -> str:
    """Version and place, once the parts that CLQ builds on import.

    Raises:
        ImportError: Detectron2 is not installed, or something that it needs.
    """
    if not _detectron2_folders():
        raise ImportError("not installed")
    for module in ("clq.compat", "detectron2.engine", "detectron2.evaluation", "detectron2.utils.visualizer"):
        importlib.import_module(module)
    detectron2 = importlib.import_module("detectron2")
    return f"{detectron2.__version__}, {detectron2.__path__[0]}"


def find_compiled_ops() -> str:
    """Whether Detectron2's own C++/CUDA ops are there. CLQ needs none, but some releases do not import with bad ones.

    Raises:
        ImportError: they were compiled for another torch or Python.
    """
    if not _compiled_ops_exist():
        return "none: CLQ does not need them, COCO evaluation is somewhat slower without"
    _torch()  # loads the libraries that the ops are linked to
    importlib.import_module("detectron2._C")
    return "there, and they load"


def _detectron2_folders() -> list[str]:
    spec = importlib.util.find_spec("detectron2")
    return list(spec.submodule_search_locations or ()) if spec else []


def _compiled_ops_exist() -> bool:
    """Looks at the files, since ``clq.compat`` may have put a stand-in in the place of the module."""
    return importlib.machinery.PathFinder.find_spec("detectron2._C", _detectron2_folders()) is not None


def detectron2_fix() -> str:
    if not _detectron2_folders():
        return "make .venv, or build Detectron2 from its repository beside your own torch"
    if _compiled_ops_exist():
        return "build Detectron2 again, from its repository, for the torch and Python that are here"
    return "mend what is broken above; if nothing is, install Detectron2 again"


def find_gpu() -> str:
    """Names and memory of the GPUs.

    Raises:
        RuntimeError: there is a driver, but torch does not see a GPU.
    """
    cuda = _torch().cuda
    if cuda.is_available():
        gpus = [cuda.get_device_properties(i) for i in range(cuda.device_count())]
        return ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus)
    if shutil.which("nvidia-smi"):
        built_for = f"CUDA {_torch().version.cuda}" if _torch().version.cuda else "the CPU only"
        raise RuntimeError(f"there is an NVIDIA driver, but torch, built for {built_for}, sees no GPU")
    return "none: everything runs on the CPU"


def find_bf16() -> str:
    """Whether this CPU multiplies in bfloat16 itself, so that mixed precision saves time on it."""
    torch = _torch()
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "supported"
    return "not supported: leave SOLVER.AMP.ENABLED False when training on this CPU"


def try_nms(device: str) -> str:
    """Three boxes: the second overlaps the first by IoU 0.8 and scores higher, the third has another class.

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
    """Deformable convolution with zero offsets is an ordinary convolution, and so are its gradients.

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
            raise RuntimeError(f"{what} differs from that of the convolution it should equal")
    return "works, forward and backward"


def report(checks: list[Check]) -> str:
    """The checks as an aligned table, a fix under each that is broken, and a verdict."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.name:{width}}  {'BROKEN' if check.fix else 'ok':6}  {check.found}")
        if check.fix:
            lines.append(f"{'':{width}}  {'':6}  fix: {check.fix}")
    broken = [check.name for check in checks if check.fix]
    return "\n".join([*lines, f"Broken: {'; '.join(broken)}." if broken else "Everything that CLQ needs works."])


def main() -> int:
    """Prints the report; returns 1 where something needed is broken, else 0."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # what imports say, we say better
        warnings.simplefilter("ignore")
        checks = diagnose()
    print(report(checks))
    return int(any(check.fix for check in checks))


if __name__ == "__main__":
    sys.exit(main())
