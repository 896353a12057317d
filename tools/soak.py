#!/usr/bin/env python3
"""Train a tiny detector for thousands of iterations, and check that memory, open files and threads do not grow.

    tools/soak.py --iterations 5000 --plot soak.png

The training is train_net.py in a process of its own, with two workers, images of several sizes, an average of the
weights, and evaluations and checkpoints in between. Every --interval seconds, the memory (PSS, which counts shared
pages once), the open files and the threads of the whole process tree are recorded. After a fifth of the iterations,
they must be flat: the line through the samples, whose slope is the median of the slopes between all pairs of samples,
may rise by --max-growth MiB, and by less than one file and one thread. The exit status is 1 if it is not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import psutil
from clq.errors import UserError
from clq.utils.cli import positive, run_cli
from kill_and_resume import COMMON, ROOT, write_dataset

WARM_UP = 0.2  # part of the iterations that may grow: caches fill, workers start, the first evaluation runs
_MIB = 1 << 20
_OPTS = [
    *("SOLVER.EMA.ENABLED", "True", "DATALOADER.NUM_WORKERS", "2", "SOLVER.IMS_PER_BATCH", "2"),
    *("INPUT.MIN_SIZE_TRAIN", "(48,64,80)", "INPUT.AUG.SCALE", "[0.5,2.0]", "INPUT.AUG.CROP", "[64,64]"),
    *("SOLVER.CHECKPOINTS_KEPT", "3", "SOLVER.STEPS", "()"),
]


class Sample(NamedTuple):
    """What the process tree holds at one moment."""

    iteration: int
    memory: float  # MiB
    files: int
    threads: int
    processes: int


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=positive, default=5000, help="iterations to train; default: 5000")
    parser.add_argument("--period", type=positive, default=250, help="iterations between evaluations; default: 250")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between samples; default: 1")
    parser.add_argument("--max-growth", type=float, default=50, metavar="MIB", help="accepted growth; default: 50 MiB")
    parser.add_argument("--plot", metavar="PNG", help="file for a picture of the samples")
    parser.add_argument("--samples", metavar="JSON", help="file for the samples")
    return parser.parse_args(argv)


def start(folder: Path, iterations: int, period: int) -> subprocess.Popen:
    """Starts the training in a folder."""
    sets = [write_dataset(folder, name, count, seed) for seed, (name, count) in enumerate((("train", 16), ("test", 4)))]
    opts = [
        *("DATASETS.COCO_JSON", json.dumps(sets), "DATASETS.TRAIN", f"('{sets[0]['name']}',)"),
        *("DATASETS.TEST", f"('{sets[1]['name']}',)", "OUTPUT_DIR", str(folder / "output")),
        *("SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", str(period)),
        *("TEST.EVAL_PERIOD", str(period)),
    ]
    config = str(ROOT / "configs/CLQ/clq_R_50_FPN_1x.yaml")
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", config, *COMMON, *_OPTS, *opts]
    with open(folder / "stdout.txt", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def take_sample(process: psutil.Process, iteration: int) -> Sample | None:
    """Measures a process and all its descendants; None if one of them ends meanwhile."""
    try:
        tree = [process, *process.children(recursive=True)]
        memory = sum(p.memory_full_info().pss for p in tree) / _MIB
        return Sample(iteration, memory, sum(p.num_fds() for p in tree), sum(p.num_threads() for p in tree), len(tree))
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # the memory of a process that ends cannot be read
        return None


def last_iteration(metrics: Path) -> int:
    """The iteration of the last complete line that the training wrote; 0 before the first."""
    lines = metrics.read_text().split("\n")[:-1] if metrics.is_file() else []
    return json.loads(lines[-1])["iteration"] if lines else 0


def watch(training: subprocess.Popen, metrics: Path, interval: float) -> list[Sample]:
    """Takes a sample every ``interval`` seconds until the training ends."""
    samples, process = [], psutil.Process(training.pid)
    while training.poll() is None:
        sample = take_sample(process, last_iteration(metrics))
        if sample is not None:
            samples.append(sample)
        time.sleep(interval)
    return samples


def growth(samples: list[Sample], field: str) -> float:
    """By how much the line through the samples rises from the first to the last of them (Theil and Sen's estimate).

    Raises:
        UserError: there are not samples of two iterations, so there is no line.
    """
    x = np.array([s.iteration for s in samples], dtype=float)
    y = np.array([getattr(s, field) for s in samples], dtype=float)
    i, j = np.triu_indices(len(samples), 1)
    apart = x[i] != x[j]
    if not apart.any():
        raise UserError(f"--iterations: {len(samples)} sample(s) of one iteration show no growth; train longer.")
    slope = np.median((y[j] - y[i])[apart] / (x[j] - x[i])[apart])
    return float(slope * (x.max() - x.min()))


def report(samples: list[Sample], max_growth: float) -> bool:
    """Prints what grew after the warm-up, and returns whether it is flat."""
    flat = True
    for field, unit, limit in (("memory", "MiB", max_growth), ("files", "files", 1.0), ("threads", "threads", 1.0)):
        values = [getattr(s, field) for s in samples]
        rise, span = growth(samples, field), samples[-1].iteration - samples[0].iteration
        flat = flat and rise < limit
        print(
            f"{field}: {min(values):.0f} to {max(values):.0f} {unit}, median {np.median(values):.0f}; "
            f"{rise:+.2f} {unit} in {span} iterations ({1000 * rise / max(span, 1):+.3f} per 1,000); "
            f"{'flat' if rise < limit else f'grows by more than {limit:g}'}"
        )
    return flat


def plot(samples: list[Sample], first: int, path: str) -> None:
    """Draws memory, files and threads against the iteration, the warm-up in grey."""
    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(8, 6), layout="constrained")
    x = [s.iteration for s in samples]
    for axis, field, label in zip(
        axes, ("memory", "files", "threads"), ("memory (MiB)", "files", "threads"), strict=True
    ):
        axis.plot(x, [getattr(s, field) for s in samples], ".", markersize=3)
        axis.axvspan(0, first, color="0.9")
        axis.set_ylim(bottom=0)
        axis.set_ylabel(label)
    axes[-1].set_xlabel("iteration")
    figure.savefig(path, dpi=100)


def main(argv=None):
    args = parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="soak_") as name:
        folder, begin = Path(name), time.monotonic()
        training = start(folder, args.iterations, args.period)
        try:
            samples = watch(training, folder / "output" / "metrics.json", args.interval)
        finally:
            if training.poll() is None:
                training.terminate()  # it ends its workers
            training.wait()
        if training.returncode:
            print(f"the training ended with {training.returncode}:\n{(folder / 'stdout.txt').read_text()[-2000:]}")
            return 1
        seconds = time.monotonic() - begin
    first = int(WARM_UP * args.iterations)
    steady = [s for s in samples if first <= s.iteration < args.iterations - 1]  # then its workers end
    print(f"{args.iterations} iterations in {seconds:.0f} s; {len(samples)} samples, {len(steady)} after the warm-up")
    if args.samples:
        Path(args.samples).write_text(json.dumps([s._asdict() for s in samples]))
    if args.plot:
        plot(samples, first, args.plot)
    return 0 if report(steady, args.max_growth) else 1


if __name__ == "__main__":
    run_cli(main)
