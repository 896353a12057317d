"""Checks config keys before a script builds anything from them, so that a mistake does not end in a traceback.

:func:`clq.config.check_keys` checks each of the project's own keys by itself. This module checks Detectron2's own keys,
and keys of both kinds that have to fit to others.
"""

import inspect
import math
import os

from detectron2.config import CfgNode
from detectron2.data import build as loader
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm

from clq.config import check_keys
from clq.data.augmentations import check_letterbox
from clq.data.tiling import check_tiles
from clq.engine.amp import autocast_dtype
from clq.engine.best import best_metric
from clq.engine.schedule import check_schedule
from clq.engine.trackers import check_trackers
from clq.errors import UserError
from clq.modeling.test_time_augmentation import check_augmentation

_DEPTHS = 18, 34, 50, 101, 152  # of Detectron2's ResNets
_SEGMENTATION_ONLY = "SemanticSegmentor", "PanopticFPN"
_FORMATS = "RGB", "BGR", "L"
_MASK_FORMATS = "polygon", "bitmask"
_SCHEDULES = "WarmupMultiStepLR", "WarmupCosineLR"
_NEWER_SCHEDULES = ("WarmupStepWithFixedGammaLR",)  # of Detectron2 main, which has the key NUM_DECAYS
_SAMPLERS = "TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"


def check_model(cfg: CfgNode) -> None:
    """Checks the keys that choose a model.

    Raises:
        UserError: the first key that is at fault.
    """
    check_keys(cfg, "MODEL.MAX_WEIGHTS_GIB", "INPUT.MAX_MEGAPIXELS", "INPUT.GREY_RANGE", "TEST.REPORT_PRECISION")
    check_keys(cfg, "TEST.REPORT_CANDIDATES")
    _check_finite(cfg)
    backbone = cfg.MODEL.BACKBONE.NAME
    _one_of("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, [name for name, _ in META_ARCH_REGISTRY])
    _one_of("MODEL.BACKBONE.NAME", backbone, [name for name, _ in BACKBONE_REGISTRY])
    _one_of("INPUT.FORMAT", cfg.INPUT.FORMAT, _FORMATS)
    _one_of("INPUT.MASK_FORMAT", cfg.INPUT.MASK_FORMAT, _MASK_FORMATS)
    if cfg.MODEL.META_ARCHITECTURE in _SEGMENTATION_ONLY:
        raise UserError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}: this project supports only box detectors; "
            "choose another."
        )
    for key in ("MASK_ON", "KEYPOINT_ON", "LOAD_PROPOSALS"):
        if cfg.MODEL[key] and (key, cfg.MODEL.META_ARCHITECTURE) != ("MASK_ON", "GeneralizedRCNN"):
            raise UserError(f"MODEL.{key} True: this project supports only box detectors; set it to False.")
    if "resnet" in backbone:
        _one_of("MODEL.RESNETS.DEPTH", cfg.MODEL.RESNETS.DEPTH, _DEPTHS)
    check_augmentation(cfg)
    check_letterbox(cfg)
    check_tiles(cfg)
    autocast_dtype(cfg, "TEST")
    for key in ("COMPILE", "CHECKPOINT_BACKBONE"):
        if cfg.MODEL.CLQ[key] and cfg.MODEL.META_ARCHITECTURE != "CLQ":
            raise UserError(
                f"MODEL.CLQ.{key} True: {cfg.MODEL.META_ARCHITECTURE} models do not support it; set it to False."
            )


def check_report(cfg: CfgNode) -> None:
    """Checks, before a training rather than in the evaluation after it, that what the report needs is available.

    Raises:
        UserError: candidates are to be kept of a model that has none.
    """
    count, name = cfg.TEST.REPORT_CANDIDATES, cfg.MODEL.META_ARCHITECTURE
    if count and cfg.DATASETS.TILE.SIZE:
        raise UserError(f"TEST.REPORT_CANDIDATES {count}: cannot be combined with DATASETS.TILE.SIZE; set one to 0.")
    if count and not hasattr(META_ARCH_REGISTRY.get(name), "candidates"):
        raise UserError(f"TEST.REPORT_CANDIDATES {count}: {name} models give no candidates; set it to 0.")


def check_training(cfg: CfgNode) -> None:
    """Checks the keys of a training: those of the data loader, the schedule and the solver.

    Raises:
        UserError: the first key that is at fault.
    """
    check_keys(cfg, "SOLVER", "DATALOADER", "DATASETS")
    best_metric(cfg)
    check_trackers(cfg)
    check_schedule(cfg)
    schedules = _SCHEDULES + (_NEWER_SCHEDULES if "NUM_DECAYS" in cfg.SOLVER else ())
    _one_of("SOLVER.LR_SCHEDULER_NAME", cfg.SOLVER.LR_SCHEDULER_NAME, schedules)
    _check_sampler(cfg)
    batch = cfg.SOLVER.IMS_PER_BATCH
    workers = cfg.SOLVER.REFERENCE_WORLD_SIZE or comm.get_world_size()
    if batch < 1 or batch % workers:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch}: must be at least 1 and a multiple of the number of processes, {workers}."
        )
    _check_accumulate(cfg, batch // workers)


def _check_finite(group: CfgNode, prefix: str = "") -> None:
    """Checks that no number of a config is NaN or infinite, those of Detectron2's own keys included."""
    for name, value in group.items():
        key = prefix + name
        if isinstance(value, CfgNode):
            _check_finite(value, f"{key}.")
        elif not _is_finite(value) and (key, value) != ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", math.inf):
            shown = list(value) if isinstance(value, tuple) else value
            raise UserError(f"{key} {shown}: must be finite.")


def _is_finite(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _check_sampler(cfg: CfgNode) -> None:
    _one_of("DATALOADER.SAMPLER_TRAIN", cfg.DATALOADER.SAMPLER_TRAIN, (*_SAMPLERS, *_newer_samplers()))
    for entry in cfg.DATASETS.get("TRAIN_REPEAT_FACTOR", []):
        name, factor = entry if isinstance(entry, (list, tuple)) and len(entry) == 2 else (None, None)
        if name not in cfg.DATASETS.TRAIN or not isinstance(factor, (int, float)) or not factor > 0:
            raise UserError(
                f"DATASETS.TRAIN_REPEAT_FACTOR {entry}: each entry is [a name in DATASETS.TRAIN, a number above 0]."
            )


def _newer_samplers() -> tuple[str, ...]:
    """The samplers of Detectron2 main that weigh data sets by ``DATASETS.TRAIN_REPEAT_FACTOR``, if it is installed."""
    weighted = getattr(loader, "_build_weighted_sampler", None)
    if weighted is None:
        return ()
    balanced = "enable_category_balance" in inspect.signature(weighted).parameters  # added later
    return ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler")[: 1 + balanced]


def _check_accumulate(cfg: CfgNode, batch: int) -> None:
    parts = cfg.SOLVER.ACCUMULATE
    if batch % parts:
        raise UserError(
            f"SOLVER.ACCUMULATE {parts}: must divide the {batch} images of a step that each process computes "
            "(SOLVER.IMS_PER_BATCH)."
        )
    if parts > 1 and cfg.MODEL.META_ARCHITECTURE != "CLQ":
        raise UserError(
            f"SOLVER.ACCUMULATE {parts}: {cfg.MODEL.META_ARCHITECTURE} models cannot split a batch; set it to 1, and "
            "SOLVER.IMS_PER_BATCH to a smaller number."
        )


def make_folder(option: str, path: str) -> None:
    """Creates the folder that an option names.

    Args:
        option: name of the option, for errors.
        path: path of the folder, which may exist.

    Raises:
        UserError: the path is a file, or the folder cannot be created or written to.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as e:
        raise UserError(f"{option} {path}: cannot be created ({e.strerror}); choose another.") from e
    if not os.access(path, os.W_OK):
        raise UserError(f"{option} {path}: cannot be written to; choose another.")


def _one_of(key: str, value: object, known: list | tuple) -> None:
    if value not in known:
        raise UserError(f"{key} {value}: must be one of {', '.join(map(str, known))}.")
