"""The throughput of the training loader, and the time of each step that prepares an image."""

import itertools
import time

import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.transforms import AugmentationList

from clq.benchmark.profiling import StageFunction, seconds_by_stage
from clq.data import mapper
from clq.engine.trainer import Trainer

_STEPS = [
    StageFunction("read and decode", mapper, "read_image"),
    StageFunction("augment", AugmentationList, "__call__"),
    StageFunction("annotations", mapper.BoxMapper, "_transform_annotations"),
]


def images_per_second(cfg: CfgNode, workers: int, seconds: float) -> float:
    """Measures the images per second of the training loader, after the first batches of each worker.

    Args:
        cfg: config of the training.
        workers: number of worker processes; 0 loads in this process.
        seconds: duration of the measurement.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = workers
    batches = iter(Trainer.build_train_loader(cfg))
    for _ in range(2 * max(workers, 1)):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(batches))
    return count / (time.perf_counter() - start)


def seconds_by_step(cfg: CfgNode, num_images: int) -> dict[str, float]:
    """Measures the mean seconds of each step of the mapper for one image, in this process.

    The step ``rest`` is what the others leave: copying the record and making the tensor.

    Args:
        cfg: config of the training.
        num_images: number of images to take the mean of.
    """
    prepare = mapper.build_train_mapper(cfg)
    dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    records = list(itertools.islice(itertools.cycle(dataset), num_images))
    spent = seconds_by_stage(lambda _: [prepare(record) for record in records], _STEPS, torch.device("cpu"))
    return {step: seconds / num_images for step, seconds in spent.items()}
