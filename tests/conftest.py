"""Shared by the end-to-end tests: generated pictures, a tiny config, scripts run in this process, a trained model."""

import contextlib
import importlib.util
import json
import logging
import signal
import sys
import time
from pathlib import Path

import clq  # noqa: F401  (first: it lets Detectron2 import)
import fuzzing
import numpy as np
import pytest
import torch.utils.cpp_extension  # (here, because it may warn on the standard error)
import yaml
from clq.utils.cli import run_cli
from detectron2.utils.logger import _LOG_COUNTER, setup_logger
from PIL import Image

# A shell's background jobs ignore SIGINT, and so would all processes of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The first backward pass of a process counts its devices. torch.export and torch.compile pretend that there is a GPU.
# If one of them came first, no process that is forked later could train, as if this one had a thread for that GPU.
torch.zeros(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session", autouse=True)
def headers_are_remembered_for_this_session_only(tmp_path_factory):
    """Keeps the tests, and the processes that they start, from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


ROOT = Path(__file__).parents[1]
SIDE = 96  # pixels of a generated image
CATEGORIES = [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}]  # the model's classes: 0 blue, 1 red (by id)
COLORS = {7: (230, 30, 30), 3: (30, 30, 230)}


def draw_shapes(rng):
    """A noisy image, (SIDE, SIDE, 3) uint8, with a rectangle in its upper and one in its lower half: [(id, XYWH)]."""
    image, boxes = rng.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8), []
    for top in (0, SIDE // 2):
        category, (w, h) = int(rng.choice([7, 3])), rng.integers(24, SIDE // 2 - 4, 2).tolist()
        x, y = int(rng.integers(0, SIDE - w)), top + int(rng.integers(0, SIDE // 2 - h))
        image[y : y + h, x : x + w] = COLORS[category]
        boxes.append((category, [x, y, w, h]))
    return image, boxes


def write_shapes(folder, name, num_images, seed):
    """Writes a COCO data set of :func:`draw_shapes` and returns its entry for ``DATASETS.COCO_JSON``."""
    rng, images, annotations = np.random.default_rng(seed), [], []
    (folder / name).mkdir(parents=True)
    for i in range(num_images):
        pixels, boxes = draw_shapes(rng)
        Image.fromarray(pixels).save(folder / name / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": SIDE, "height": SIDE})
        for category, (x, y, w, h) in boxes:
            box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "category_id": category, "image_id": i + 1}
            annotations.append({"id": len(annotations) + 1, **box})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return {"name": name, "json": str(folder / f"{name}.json"), "images": str(folder / name)}


def tiny_config(datasets):
    """CLQ with 32 channels on a ResNet-18, for images of ``SIDE`` pixels; ``datasets``: of train and test set."""
    return {
        "_BASE_": str(ROOT / "configs/CLQ/clq_R_50_FPN_1x.yaml"),
        "MODEL": {
            "DEVICE": "cpu",
            "WEIGHTS": "",
            "BACKBONE": {"FREEZE_AT": 0},
            "RESNETS": {"DEPTH": 18, "NORM": "BN", "RES2_OUT_CHANNELS": 64},
            "FPN": {"OUT_CHANNELS": 32},
            "CLQ": {"IN_FEATURES": ["p3", "p4", "p5"], "CONV_DIM": 32, "NUM_CONVS": 1, "ANCHOR_SCALE": 4.0},
        },
        "DATASETS": {
            "COCO_JSON": datasets,
            "TRAIN": [datasets[0]["name"]],
            "TEST": [datasets[1]["name"]],
        },
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {"MIN_SIZE_TRAIN": [0], "MIN_SIZE_TEST": 0},
        "SOLVER": {
            "OPTIMIZER": "AdamW",
            "BASE_LR": 0.004,  # for 8 images a batch: 0.002 for 4
            "REFERENCE_BATCH": 8,
            "IMS_PER_BATCH": 4,
            "MAX_ITER": 60,
            "STEPS": [],
            "WARMUP_ITERS": 5,
        },
        "TEST": {"REPORT": False},  # which takes seconds
        "SEED": 1,
    }


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Path of the tiny config, its data sets beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    datasets = [write_shapes(folder, "shapes_train", 16, seed=0), write_shapes(folder, "shapes_val", 4, seed=1)]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_config(datasets)))
    return str(folder / "tiny.yaml")


@contextlib.contextmanager
def own_logging():
    """Takes back what a script does to the loggers, which would hide their records from other tests."""
    loggers = [logging.getLogger(name) for name in ("clq", "detectron2", "fvcore")]
    before = [(x.handlers[:], x.level, x.propagate) for x in loggers]
    _LOG_COUNTER.clear()  # Detectron2 logs some messages once a process, as a script of its own would
    try:
        yield
    finally:
        setup_logger.cache_clear()
        for logger, (logger.handlers, level, logger.propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)


def load_script(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str((ROOT / path).parent))  # as Python does for a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def run_script(path, *argv):
    """Runs a script's main in this process, as its command line does, and returns the exit status."""
    main, argv = load_script(path).main, list(map(str, argv))
    with own_logging(), pytest.raises(SystemExit) as exited:
        run_cli(main, argv)
    return exited.value.code


@pytest.fixture(scope="session")
def script():
    """A script as a module: ``script("tools/zoo.py")``."""
    return load_script


@pytest.fixture(scope="session")
def run():
    """:func:`run_script`: ``run("train_net.py", "--config-file", ...)`` -> exit status."""
    return run_script


@pytest.fixture
def run_clq(monkeypatch):
    """Runs the command ``clq`` in this process: ``run_clq("train", "--config-file", ...)`` -> exit status."""
    from clq.commands.main import main

    def run(*argv):
        monkeypatch.setattr(sys, "argv", sys.argv)  # which the command replaces
        with own_logging(), pytest.raises(SystemExit) as exited:
            main(list(map(str, argv)))
        return exited.value.code

    return run


@pytest.fixture(scope="session")
def trained(tiny, run, tmp_path_factory):
    """Output folder of a short training on the generated pictures; only read."""
    output = tmp_path_factory.mktemp("trained")
    assert run("train_net.py", "--config-file", tiny, "OUTPUT_DIR", output, "TEST.REPORT", True) == 0
    return output


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Under ``make fuzz``, repeats a property with new examples until its time is over."""
    if not fuzzing.MINUTES or not pyfuncitem.get_closest_marker("fuzz"):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    fuzzing.OUTCOMES.clear()
    end = time.monotonic() + 60 * fuzzing.MINUTES
    while time.monotonic() < end:
        pyfuncitem.obj(**arguments)
    fuzzing.REPORT.append(f"{pyfuncitem.nodeid}: {dict(fuzzing.OUTCOMES)}")
    return True


def pytest_terminal_summary(terminalreporter):
    """Reports what the readers did with the examples of ``make fuzz``."""
    for line in fuzzing.REPORT:
        terminalreporter.write_line(line)
