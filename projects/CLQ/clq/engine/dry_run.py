"""A training in short: whether it runs, and the memory and the time that it will take."""

import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sized
from datetime import timedelta
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from clq.checkpoint.folder import checkpoint_to_resume
from clq.engine.trainer import Trainer
from clq.errors import UserError

_ITERATIONS = 2
_TEST_IMAGES = 10  # of each test set and process


class _FirstImages:
    """The first images of a test loader.

    Attributes:
        left: estimated seconds that the other images would take, once the first ones have been used.
    """

    def __init__(self, loader: Any):
        self._loader = loader
        self.left = 0.0

    def __len__(self) -> int:
        return min(len(self._loader), _TEST_IMAGES)

    def __iter__(self) -> Iterator[list[dict]]:
        times = []
        for batch in itertools.islice(self._loader, len(self)):
            times.append(time.perf_counter())
            yield batch
        times.append(time.perf_counter())
        seconds = [end - start for start, end in itertools.pairwise(times)]
        if seconds:  # the first image takes longer than those after it
            self.left = statistics.mean(seconds[1:] or seconds) * (len(self._loader) - len(self))


class _ShortTrainer(Trainer):
    """Trains for two iterations of the schedule of the whole training, and evaluates on a few images.

    Attributes:
        seconds: seconds of the last iteration, with the time that it has waited for images.
        evaluations: estimated seconds of each evaluation of all images: of the model, of its moving average if there
            is one, and with test-time augmentation if that is on.
    """

    seconds = 0.0
    evaluations: list[float]
    _loaders: list[_FirstImages]

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg)
        self.max_iter = min(_ITERATIONS, self.max_iter)
        type(self).evaluations, type(self)._loaders = [], []

    def run_step(self) -> None:
        start = time.perf_counter()
        try:
            super().run_step()
            if self.cfg.MODEL.DEVICE.startswith("cuda"):
                torch.cuda.synchronize()
        except torch.OutOfMemoryError as e:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {self.cfg.SOLVER.IMS_PER_BATCH}: the memory of the GPU is too small; lower it, "
                "or raise SOLVER.ACCUMULATE."
            ) from e
        self.seconds = time.perf_counter() - start

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Sized:
        loader = _FirstImages(super().build_test_loader(cfg, dataset_name))
        cls._loaders.append(loader)
        return loader

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: list | None = None) -> dict:
        start, known = time.perf_counter(), len(cls._loaders)
        results = super().test(cfg, model, evaluators)
        left = sum(loader.left for loader in cls._loaders[known:])
        cls.evaluations.append(time.perf_counter() - start + left)
        return results


def dry_run(cfg: CfgNode) -> None:
    """Tries a training and prints what it takes.

    Two iterations are trained, a few images of each test set are evaluated, and a checkpoint is written to
    ``OUTPUT_DIR`` and read back.

    Raises:
        UserError: the training cannot run like this.
    """
    short = cfg.clone()
    short.defrost()
    short.TEST.EXPECTED_RESULTS = []
    short.TEST.PRECISE_BN.NUM_ITER = min(_ITERATIONS, cfg.TEST.PRECISE_BN.NUM_ITER)
    short.freeze()
    trainer = _ShortTrainer(short)
    trainer.resume_or_load(resume=False)
    trainer.train()
    if not comm.is_main_process():
        return
    checkpoint = _read_back(trainer)
    for line in _report(cfg, trainer.seconds, trainer.evaluations, trainer.cfg.SOLVER.MAX_ITER):
        print(line)
    print(f"checkpoint  {os.path.getsize(checkpoint) / 2**20:.0f} MiB, written and read back")


def _read_back(trainer: Trainer) -> str:
    """Loads the checkpoint of a training that has ended, and returns its path.

    Raises:
        UserError: it does not hold the weights of the training.
    """
    path = checkpoint_to_resume(trainer.cfg.OUTPUT_DIR)
    assert path is not None
    weights = {name: value.clone() for name, value in trainer.checkpointer.model.state_dict().items()}
    trainer.checkpointer.load(path)
    for name, value in trainer.checkpointer.model.state_dict().items():
        if not torch.equal(value, weights[name]):
            raise UserError(f"{path}: {name} is not read as it was written; check the disk of this folder.")
    return path


def _report(cfg: CfgNode, step: float, evaluations: list[float], max_iter: int) -> Iterator[str]:
    """The lines on memory and time.

    Args:
        cfg: of the whole training.
        step: seconds of an iteration.
        evaluations: as in :class:`_ShortTrainer`.
        max_iter: number of iterations.
    """
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpu = f", {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB of the GPU" if torch.cuda.is_initialized() else ""
    yield f"memory      {peak / 2**30:.1f} GiB{gpu} at most, without the workers that load images"
    total = step * max_iter
    yield f"training    {step:.3g} s an iteration, {max_iter:,} iterations: {_duration(total)}"
    if cfg.DATASETS.TEST:
        period = cfg.TEST.EVAL_PERIOD
        times = 1 if period == 0 else math.ceil(max_iter / period)  # after the last iteration in any case
        each = sum(evaluations[: 1 + cfg.SOLVER.EMA.ENABLED])
        testing = times * each + sum(evaluations[1 + cfg.SOLVER.EMA.ENABLED :])
        total += testing
        yield f"evaluation  {_duration(each)} each, {times:,} time(s): {_duration(testing)}"
    yield f"in total    about {_duration(total)}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=math.ceil(seconds)))
