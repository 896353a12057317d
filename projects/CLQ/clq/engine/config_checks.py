"""Checks of config keys that Detectron2 reads, whose mistakes would otherwise end in a traceback."""

import inspect
import os

from detectron2.config import CfgNode
from detectron2.data import build as loader
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm

from clq.data.augmentations import check_letterbox
from clq.engine.amp import autocast_dtype
from clq.errors import UserError
from clq.modeling.test_time_augmentation import check_augmentation

_DEPTHS = 18, 34, 50, 101, 152  # those that Detectron2's ResNets have
_SEGMENTATION = "SemanticSegmentor", "PanopticFPN"  # meta-architectures that are no box detectors
_FORMATS = "RGB", "BGR", "L"
_SCHEDULES = "WarmupMultiStepLR", "WarmupCosineLR"
_NEWER_SCHEDULES = ("WarmupStepWithFixedGammaLR",)  # only in Detectron2 main, which has the key NUM_DECAYS
_SAMPLERS = "TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"


def check_model(cfg: CfgNode) -> None:
    """Checks the keys that choose a model.

    Raises:
        UserError: a key has an unknown or unsupported value.
    """
    backbone = cfg.MODEL.BACKBONE.NAME
    _one_of("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, [name for name, _ in META_ARCH_REGISTRY])
    _one_of("MODEL.BACKBONE.NAME", backbone, [name for name, _ in BACKBONE_REGISTRY])
    _one_of("INPUT.FORMAT", cfg.INPUT.FORMAT, _FORMATS)
    if cfg.MODEL.META_ARCHITECTURE in _SEGMENTATION:
        raise UserError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}: is no box detector; choose CLQ, RetinaNet or "
            "another one."
        )
    for key in ("MASK_ON", "KEYPOINT_ON", "LOAD_PROPOSALS"):
        if cfg.MODEL[key] and (key, cfg.MODEL.META_ARCHITECTURE) != ("MASK_ON", "GeneralizedRCNN"):
            raise UserError(f"MODEL.{key}: only box detectors are supported; set it to False.")
    if "resnet" in backbone:
        _one_of("MODEL.RESNETS.DEPTH", cfg.MODEL.RESNETS.DEPTH, _DEPTHS)
    check_augmentation(cfg)
    check_letterbox(cfg)
    autocast_dtype(cfg, "TEST")
    for key in ("COMPILE", "CHECKPOINT_BACKBONE"):
        if cfg.MODEL.CLQ[key] and cfg.MODEL.META_ARCHITECTURE != "CLQ":
            raise UserError(
                f"MODEL.CLQ.{key}: {cfg.MODEL.META_ARCHITECTURE} models do not support it; set it to False."
            )


def check_training(cfg: CfgNode) -> None:
    """Checks the keys of the training loader, the schedule and the moving average.

    Raises:
        UserError: a key has an unknown value, or one that is out of range.
    """
    schedules = _SCHEDULES + (_NEWER_SCHEDULES if "NUM_DECAYS" in cfg.SOLVER else ())
    _one_of("SOLVER.LR_SCHEDULER_NAME", cfg.SOLVER.LR_SCHEDULER_NAME, schedules)
    _check_sampler(cfg)
    batch = cfg.SOLVER.IMS_PER_BATCH
    workers = cfg.SOLVER.REFERENCE_WORLD_SIZE or comm.get_world_size()
    if batch < 1 or batch % workers:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch}: must be at least 1 and a multiple of the {workers} process(es)."
        )
    _check_accumulate(cfg, batch // workers)
    if cfg.SOLVER.EMA.ENABLED and not 0 <= cfg.SOLVER.EMA.DECAY < 1:
        raise UserError(f"SOLVER.EMA.DECAY {cfg.SOLVER.EMA.DECAY}: must be at least 0 and below 1.")


def _check_sampler(cfg: CfgNode) -> None:
    _one_of("DATALOADER.SAMPLER_TRAIN", cfg.DATALOADER.SAMPLER_TRAIN, (*_SAMPLERS, *_newer_samplers()))
    ratio, factors = cfg.DATALOADER.RANDOM_SUBSET_RATIO, cfg.DATASETS.get("TRAIN_REPEAT_FACTOR", [])
    if not 0 < ratio <= 1:
        raise UserError(f"DATALOADER.RANDOM_SUBSET_RATIO {ratio}: must be above 0 and at most 1.")
    for entry in factors:
        name, factor = entry if isinstance(entry, (list, tuple)) and len(entry) == 2 else (None, None)
        if name not in cfg.DATASETS.TRAIN or not isinstance(factor, (int, float)) or not factor > 0:
            raise UserError(
                f"DATASETS.TRAIN_REPEAT_FACTOR {entry}: each entry is [a name in DATASETS.TRAIN, a number above 0]."
            )


def _newer_samplers() -> tuple[str, ...]:
    """The samplers that only Detectron2 main has, if it is installed.

    They weight data sets by ``DATASETS.TRAIN_REPEAT_FACTOR``.
    """
    weighted = getattr(loader, "_build_weighted_sampler", None)
    if weighted is None:
        return ()
    balanced = "enable_category_balance" in inspect.signature(weighted).parameters  # main has it since a later date
    return ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler")[: 1 + balanced]


def _check_accumulate(cfg: CfgNode, batch: int) -> None:
    """Checks ``SOLVER.ACCUMULATE`` for the number of images that a process has in a step."""
    parts = cfg.SOLVER.ACCUMULATE
    if parts < 1 or batch % parts:
        raise UserError(
            f"SOLVER.ACCUMULATE {parts}: must be at least 1 and divide the {batch} images that each process has in a "
            "step (SOLVER.IMS_PER_BATCH)."
        )
    if parts > 1 and cfg.MODEL.META_ARCHITECTURE != "CLQ":
        raise UserError(
            f"SOLVER.ACCUMULATE {parts}: {cfg.MODEL.META_ARCHITECTURE} models do not support it; set it to 1, and "
            "lower SOLVER.IMS_PER_BATCH if memory is short."
        )


def make_folder(option: str, path: str) -> None:
    """Creates the folder that an option names, if it does not exist.

    Raises:
        UserError: the folder cannot be created or written to.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as e:
        raise UserError(f"{option} {path}: cannot be created ({e.strerror}); choose another folder.") from e
    if not os.access(path, os.W_OK):
        raise UserError(f"{option} {path}: cannot be written to; choose another folder.")


def _one_of(key: str, value: object, known: list | tuple) -> None:
    if value not in known:
        raise UserError(f"{key} {value}: not one of {', '.join(map(str, known))}.")
