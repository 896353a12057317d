"""The trainings of an ablation: how they are started, continued and recorded, and the losses that they wrote."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch

from clq.config import setup_cfg
from clq.errors import UserError
from clq.utils.files import read_json

TRAIN = "-m", "clq", "train"  # arguments of Python
SETTINGS, DONE = "settings.json", "done"  # files in the folder of a run


@dataclass(frozen=True)
class Run:
    """One training of a variant.

    Attributes:
        config_file: path of the study's config.
        opts: overrides KEY, VALUE, ... of the variant, of the study and of the seed.
        folder: folder of the training (``OUTPUT_DIR``).
    """

    config_file: str
    opts: tuple[str, ...]
    folder: Path

    @property
    def done(self) -> bool:
        """Whether the training is complete."""
        return (self.folder / DONE).is_file()

    def prepare(self) -> None:
        """Makes the folder and writes the settings into it, or checks those that it holds.

        Raises:
            UserError: the folder holds a run with other settings.
        """
        cfg = setup_cfg(self.config_file, [*self.opts, "MODEL.DEVICE", "cpu"])  # equal on all machines
        settings = {"config": cfg.dump()}
        path = self.folder / SETTINGS
        if path.is_file() and read_json(path) != settings:
            raise UserError(f"{self.folder}: holds a run with other settings; choose another --output or delete it.")
        self.folder.mkdir(parents=True, exist_ok=True)
        complete = path.with_suffix(".tmp")  # so that an interruption leaves no half-written file
        complete.write_text(json.dumps(settings, indent=1))
        complete.replace(path)

    def train(self, threads: int, gpu: str | None) -> bool:
        """Trains in a separate process, from the last checkpoint if there is one.

        Args:
            threads: number of CPU threads of the process.
            gpu: value of ``CUDA_VISIBLE_DEVICES``, or None to leave it as it is.

        Returns:
            Whether the training succeeded.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        argv = ["--config-file", self.config_file, "--resume", *self.opts, "OUTPUT_DIR", str(self.folder)]
        with open(self.folder / "stdout.txt", "w") as log:
            process = subprocess.run([sys.executable, *TRAIN, *argv], env=environment, stdout=log, stderr=log)
        if process.returncode == 0:
            (self.folder / DONE).touch()
        return process.returncode == 0


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, each as a value of ``CUDA_VISIBLE_DEVICES``."""
    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[:count] if given else [str(i) for i in range(count)]


def train_all(runs: Sequence[Run], jobs: int) -> list[Run]:
    """Trains the runs that are not complete yet.

    Args:
        runs: all runs of the study.
        jobs: number of trainings at a time, among which GPUs and cores are divided.

    Returns:
        The runs that failed.

    Raises:
        UserError: the folder of a run holds a run with other settings.
    """
    for run in runs:
        run.prepare()
    gpus = visible_gpus()
    free_jobs: SimpleQueue[int] = SimpleQueue()
    for job in range(jobs):
        free_jobs.put(job)

    def train(run: Run) -> bool:
        job = free_jobs.get()
        try:
            print(f"{run.folder}: started", flush=True)
            succeeded = run.train(max(1, (os.cpu_count() or 1) // jobs), gpus[job % len(gpus)] if gpus else None)
            print(f"{run.folder}: {'done' if succeeded else f'failed, see {run.folder}/stdout.txt'}", flush=True)
            return succeeded
        finally:
            free_jobs.put(job)

    waiting = [run for run in runs if not run.done]
    with ThreadPoolExecutor(jobs) as pool:
        return [run for run, succeeded in zip(waiting, pool.map(train, waiting), strict=True) if not succeeded]


def loss_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Reads the losses from the ``metrics.json`` that Detectron2 writes during training.

    A training that was interrupted and continued can have gone through an iteration twice; its last value counts.

    Args:
        folder: folder of the training.

    Returns:
        For each loss the pairs (iteration, value), by the name of the loss.
    """
    curves: dict[str, dict[int, float]] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the training was interrupted while it wrote this line
            continue
        if not isinstance(record, dict) or "iteration" not in record:
            continue
        for name, value in record.items():
            if "loss" in name:
                curves.setdefault(name, {})[record["iteration"]] = value
    return {name: sorted(curve.items()) for name, curve in curves.items()}
