"""What a training's loader reaches, and which step of making an image ready costs most."""

import itertools
import time

import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.transforms import AugmentationList

from clq.benchmark.profiling import Place, seconds_by_stage
from clq.data import mapper
from clq.engine.trainer import Trainer

_STEPS = [
    Place("read and decode", mapper, "read_image"),
    Place("augment", AugmentationList, "__call__"),
    Place("annotations", mapper.BoxMapper, "_transform_annotations"),
]


def images_per_second(cfg: CfgNode, workers: int, seconds: float) -> float:
    """Of the training loader with so many worker processes, over that time, after each worker's first batches."""
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
    """Mean seconds of the mapper's steps for one image, in this process; ``rest``: copy of the record, the tensor."""
    make = mapper.build_train_mapper(cfg)
    dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    records = list(itertools.islice(itertools.cycle(dataset), num_images))
    spent = seconds_by_stage(lambda _: [make(record) for record in records], _STEPS, torch.device("cpu"))
    return {step: seconds / num_images for step, seconds in spent.items()}
