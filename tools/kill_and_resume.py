#!/usr/bin/env python3
"""Kill trainings at random moments, resume them, and compare the result with that of an uninterrupted training.

    tools/kill_and_resume.py --rounds 20

Each round trains a tiny detector on generated images in a process of its own, ends the process with SIGKILL after a
random time, and resumes the training with --resume, until it is finished. All tensors and numbers in model_final.pth
and model_final_ema.pth must then be equal, bit by bit, to those of the same training without interruption. The rounds
take turns between several settings, and the interrupted trainings evaluate at other iterations than the uninterrupted.

This process imports everything once and forks the trainings, which therefore start within a fraction of a second. The
exit status is 1 if a round differs, fails, or has a training that takes longer than --limit seconds, whose stacks are
then written. The folder of such rounds is kept.
"""

import argparse
import contextlib
import faulthandler
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import clq  # noqa: F401  (first: it lets Detectron2 import)
import cv2
import numpy as np
import torch
import torch.utils.cpp_extension  # this and the next: or each training would import them
import torch.utils.tensorboard
from clq.checkpoint.comparison import compare
from clq.commands.train import main as train_main
from clq.utils.cli import positive, run_cli
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
_SECONDS_FOR_STACKS = 10
KILLS = 3  # times that a training is killed at most; it is then left to finish

COMMON = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.CLQ.CONV_DIM", "32", "MODEL.CLQ.NUM_CONVS", "1"),
    *("SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.STEPS", "(4,)", "SOLVER.WARMUP_ITERS", "2"),
    *("SOLVER.IMS_PER_BATCH", "4", "INPUT.MIN_SIZE_TEST", "48", "SEED", "1"),
]
# Command lines of the trainings: name -> config and overrides.
SETTINGS = {
    "CLQ, AdamW, EMA, bf16, batches in 2 parts, 2 workers, augmentations": [
        "configs/CLQ/clq_R_50_FPN_1x.yaml",
        *("SOLVER.OPTIMIZER", "AdamW", "SOLVER.EMA.ENABLED", "True", "SOLVER.ACCUMULATE", "2"),
        *("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bf16", "DATALOADER.NUM_WORKERS", "2"),
        *("INPUT.MIN_SIZE_TRAIN", "(48,64,80)", "INPUT.CROP.ENABLED", "True", "INPUT.AUG.SCALE", "[0.5,2.0]"),
        *("INPUT.AUG.CROP", "[64,64]", "INPUT.AUG.ROTATE90", "True", "INPUT.AUG.FLIP_VERTICAL", "True"),
        *("INPUT.AUG.COLOR", "0.2", "INPUT.AUG.BRIGHTNESS", "0.2", "INPUT.AUG.CONTRAST", "[0.6,1.4]"),
        *("INPUT.AUG.SATURATION", "[0.5,1.2]"),
    ],
    "CLQ, SGD, clipped gradients, cosine schedule, repeated images, no workers": [
        "configs/CLQ/clq_R_50_FPN_1x.yaml",
        *("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
        *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", "2.0"),
        *("DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(48,80)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"),
    ],
    "CLQ, letterbox, fp16 with loss scaling, EMA, a subset of the images, 1 worker": [
        "configs/CLQ/clq_R_50_FPN_1x.yaml",
        *("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "fp16", "SOLVER.EMA.ENABLED", "True"),
        *("INPUT.LETTERBOX.ENABLED", "True", "INPUT.LETTERBOX.SIZE", "[64,64]", "INPUT.AUG.SHIFT", "0.2"),
        *("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler", "DATALOADER.RANDOM_SUBSET_RATIO", "0.6"),
        *("DATALOADER.NUM_WORKERS", "1"),
    ],
    "TOOD, which changes its assigner after a third, no grouping by shape, 1 worker": [
        "configs/TOOD/tood_R_50_FPN_1x.yaml",
        *("DATALOADER.NUM_WORKERS", "1", "INPUT.MIN_SIZE_TRAIN", "(48,64)", "MODEL.CLQ.NUM_CONVS", "2"),
        *("DATALOADER.ASPECT_RATIO_GROUPING", "False"),
    ],
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=20, help="number of rounds; default: 20")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments at which it kills; default: 0")
    parser.add_argument("--settings", type=positive, default=len(SETTINGS), help="number of settings; default: all")
    parser.add_argument("--limit", type=positive, default=300, help="seconds for one training; default: 300")
    return parser.parse_args(argv)


def write_dataset(folder: Path, name: str, num_images: int, seed: int) -> dict[str, str]:
    """Writes images of two shapes with a bright rectangle each, and returns their entry for DATASETS.COCO_JSON."""
    rng, images, annotations = np.random.default_rng(seed), [], []
    (folder / name).mkdir()
    for i in range(num_images):
        width, height = ((80, 64), (64, 80))[rng.integers(2)]
        pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
        (w, h), (x, y) = rng.integers(20, 40, 2).tolist(), rng.integers(0, 24, 2).tolist()
        pixels[y : y + h, x : x + w] = 200
        Image.fromarray(pixels).save(folder / name / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": width, "height": height})
        box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "category_id": int(rng.integers(2))}
        annotations.append({"id": i + 1, "image_id": i + 1, **box})
    categories = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return {"name": f"kill_and_resume_{name}", "json": str(folder / f"{name}.json"), "images": str(folder / name)}


def train(output: Path, opts: list[str], limit: float, kill_after: float | None = None) -> int | None:
    """Trains in a forked process with --resume.

    Args:
        output: OUTPUT_DIR; what the process prints is appended to stdout.txt in it.
        opts: path of a config and overrides.
        limit: seconds after which the process counts as stalled. It and its workers are then ended, and their stacks
            are appended as well.
        kill_after: seconds after which the process is killed; None lets it finish.

    Returns:
        The exit status, -SIGABRT if it stalled, or None if the process was killed.
    """
    output.mkdir(exist_ok=True)
    start, process, stalled = time.monotonic(), os.fork(), False
    if process == 0:
        _train_here(output, opts)
    while True:
        finished, status = os.waitpid(process, os.WNOHANG)
        seconds = time.monotonic() - start
        if not finished and kill_after is not None and seconds >= kill_after:
            os.kill(process, signal.SIGKILL)
            finished, status = os.waitpid(process, 0)
        if finished:
            break
        if seconds >= limit and not stalled:
            stalled = True
            os.killpg(process, signal.SIGABRT)  # faulthandler writes the stacks
        if seconds >= limit + _SECONDS_FOR_STACKS:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # workers, which notice the end of the training a little later
    if stalled:
        return -signal.SIGABRT
    return None if os.WIFSIGNALED(status) and kill_after is not None else os.waitstatus_to_exitcode(status)


def _train_here(output: Path, opts: list[str]) -> None:
    """Becomes a training of its own, and exits."""
    try:
        os.setsid()
        tempfile.tempdir = str(output.parent)  # for what it leaves there when it is killed
        log = os.open(output / "stdout.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.enable(2)  # in workers, too
        torch.set_num_threads(1)  # pools of threads do not survive a fork
        cv2.setNumThreads(0)
        config, *overrides = opts
        argv = ["--resume", "--config-file", str(ROOT / config), *COMMON, *overrides, "OUTPUT_DIR", str(output)]
        run_cli(train_main, argv)
    except SystemExit as e:
        sys.stdout.flush()
        os._exit(e.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def failure(folder: Path, status: int) -> str:
    """Describes how a training failed.

    Args:
        folder: OUTPUT_DIR.
        status: result of :func:`train`.
    """
    if status == -signal.SIGABRT:
        return f"stalled, see the stacks at the end of {folder}/stdout.txt"
    printed = (folder / "stdout.txt").read_text().strip().splitlines()
    return f"exit status {status}: {printed[-1] if printed else 'nothing was printed'}"


def kill_and_resume(folder: Path, opts: list[str], rng: random.Random, seconds: float, limit: float) -> tuple[int, str]:
    """Trains in a folder, with interruptions; returns their number and, if the training failed, what it printed last.

    Args:
        folder: OUTPUT_DIR.
        opts: path of a config and overrides.
        rng: source of the random moments, and of the iterations with an evaluation.
        seconds: time that the training takes without interruption.
        limit: as in :func:`train`.
    """
    kills = 0
    while True:
        delay = rng.uniform(0, seconds) if kills < KILLS else None
        status = train(folder, [*opts, "TEST.EVAL_PERIOD", str(rng.choice((0, 4)))], limit, delay)
        if status is None:
            kills += 1
        elif status:
            return kills, failure(folder, status)
        elif kills:
            return kills, ""
        else:  # it was finished before its time: once more
            shutil.rmtree(folder)


def main(argv=None):
    args = parse_args(argv)
    rng, folder = random.Random(args.seed), Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    gc.freeze()  # so that the forked processes share the memory of what is imported
    sets = [write_dataset(folder, name, count, seed) for seed, (name, count) in enumerate((("train", 14), ("test", 2)))]
    data = ["DATASETS.COCO_JSON", json.dumps(sets), "DATASETS.TRAIN", f"('{sets[0]['name']}',)"]
    data += ["DATASETS.TEST", f"('{sets[1]['name']}',)"]
    chosen = {name: [*opts, *data] for name, opts in list(SETTINGS.items())[: args.settings]}
    references, seconds = {}, {}
    for i, (name, opts) in enumerate(chosen.items()):
        references[name], start = folder / f"reference_{i}", time.monotonic()
        if status := train(references[name], opts, args.limit):
            print(f"{name}: {failure(references[name], status)}")
            return 1
        seconds[name] = time.monotonic() - start
        print(f"{name}: {seconds[name]:.1f} s without interruption", flush=True)
    equal, total, begin = 0, 0, time.monotonic()
    for i in range(args.rounds):
        name, output = list(chosen)[i % len(chosen)], folder / f"round_{i}"
        kills, problem = kill_and_resume(output, chosen[name], rng, seconds[name], args.limit)
        found = [problem] if problem else compare(output, references[name])
        result = f"{len(found)} differ: {found[:3]}" if found else "equal"
        print(f"round {i + 1}, {name}: {kills} kills: {result}", flush=True)
        total += kills
        if not found:
            equal += 1
            shutil.rmtree(output)
    print(f"{equal} of {args.rounds} rounds equal ({total} kills, {time.monotonic() - begin:.0f} s)")
    if equal < args.rounds:
        print(f"see {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    run_cli(main)
