"""Every config key of the project, and the one way to make a config.

This file and the ``from_config`` methods are the only readers of keys; parts take plain arguments.
"""

import difflib
import logging
import os
from collections.abc import Sequence

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from clq.data.datasets import register_coco_json
from clq.errors import UserError

logger = logging.getLogger(__name__)


def add_clq_config(cfg: CfgNode) -> None:
    """Adds the project's keys, with their defaults, to a Detectron2 config (in place)."""
    _add_model(cfg)
    _add_training(cfg)


def _add_model(cfg: CfgNode) -> None:
    c = cfg.MODEL.CLQ = CfgNode()
    c.NUM_CLASSES = -1  # K; -1: as many as the first training set has
    c.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    c.ANCHOR_SCALE = 8.0  # side of the one square anchor, in strides (ATSS)
    c.ANCHOR_OFFSET = 0.0  # its centre at (i + offset) * stride
    c.NUM_CONVS = 4  # depth of each tower
    c.CONV_DIM = 256  # its width
    c.NORM = "GN"  # its normalisation: any name that detectron2.layers.get_norm knows
    c.PRIOR_PROB = 0.01  # class probability at initialisation (RetinaNet's pi)
    c.TOPK = 9  # k, candidates per level and ground truth (ATSS)

    c.BOX = CfgNode()
    c.BOX.CODING = "delta"  # delta | distribution
    c.BOX.WEIGHTS = [10.0, 10.0, 5.0, 5.0]  # of (dx, dy, dw, dh) with delta coding
    c.BOX.REG_MAX = 16  # n, last bin of each side's distribution (GFL), in strides
    c.BOX.LOSS_WEIGHT = 1.0  # of GIoU (eq. 5; ATSS and GFL: 2)
    c.BOX.DFL_WEIGHT = 0.25  # of distribution focal loss (GFL's lambda_1)
    c.BOX.WEIGHT_BY = "none"  # none | centerness (ATSS) | score (GFL: detached maximum class score)

    c.CLS = CfgNode()
    c.CLS.LOSS = "qfl"  # focal (target 1) | qfl (target IoU^alpha, eq. 4)
    c.CLS.BETA = 2.0  # beta of QFL (eq. 4)
    c.CLS.FOCAL_ALPHA = 0.25
    c.CLS.FOCAL_GAMMA = 2.0

    c.QUALITY = CfgNode()
    c.QUALITY.NAME = (
        "iou"  # none | centerness (ATSS, multiplied at test only) | iou (LQE: in the score, train and test)
    )
    c.QUALITY.ALPHA = 0.3  # alpha (eq. 2): score = cls * IoU^alpha; also the exponent of the class target
    c.QUALITY.LOSS_WEIGHT = 1.0  # of the branch's BCE (eq. 1)
    c.QUALITY.TARGET = "pred_box"  # whose IoU the LQE learns: pred_box (decoded, no gradient) | anchor

    c.ALIGN = CfgNode()
    c.ALIGN.NAME = "geometric"  # none | learned (1x1 conv on the regressed box) | geometric (taps spread over it)
    c.ALIGN.BACKEND = "auto"  # auto | torchvision (deform_conv2d) | grid_sample, gather (the same in plain torch)

    c.SCORE_THRESH = 0.05  # final score (ATSS: class score) below which nothing is a candidate
    c.TOPK_CANDIDATES = 1000  # per level, before NMS
    c.NMS_THRESH = 0.6


def _add_training(cfg: CfgNode) -> None:
    # Data sets of your own, registered by name for every script: [{name: ..., json: ..., images: ...}]
    cfg.DATASETS.COCO_JSON = []
    cfg.SOLVER.OPTIMIZER = "SGD"  # SGD | AdamW
    # Images a batch that BASE_LR is meant for: the rate used is BASE_LR * IMS_PER_BATCH / REFERENCE_BATCH. 0: BASE_LR.
    cfg.SOLVER.REFERENCE_BATCH = 16
    cfg.SOLVER.AMP.DTYPE = "auto"  # auto (CUDA: fp16 with loss scaling, CPU: bf16) | fp16 | bf16

    aug = cfg.INPUT.AUG = CfgNode()  # on top of Detectron2's resizing, INPUT.CROP and INPUT.RANDOM_FLIP
    aug.COLOR = 0.0  # brightness, contrast and saturation each scaled by a factor within 1 -+ this
    aug.SCALE = [1.0, 1.0]  # zoom drawn from this range (log-uniform), before the crop
    aug.CROP = []  # [height, width] cut at random from the zoomed image, padded where it is smaller; empty: all of it
    aug.ROTATE90 = False  # a random quarter turn: for images without an up, such as aerial ones
    aug.FLIP_VERTICAL = False


def setup_cfg(config_file: str | None, opts: Sequence[str] = ()) -> CfgNode:
    """Defaults, then the project's keys, then the file, then the overrides; registers ``DATASETS.COCO_JSON``.

    Nothing in the file executes: tags such as ``!!python/object`` are refused. A config that asks for CUDA on a machine
    without one is moved to the CPU, and says so in the log.

    Args:
        config_file: path of a yaml file (its ``_BASE_`` is followed), or None for the defaults.
        opts: ``KEY VALUE KEY VALUE ...`` overrides, as from a command line.

    Raises:
        UserError: no such file, yaml that is not plain, an unknown key, a value of the wrong type.
    """
    cfg = get_cfg()
    add_clq_config(cfg)
    if config_file:
        _merge_file(cfg, config_file)
    _merge_opts(cfg, list(opts))
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No CUDA device here: MODEL.DEVICE %s -> cpu", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    register_coco_json(cfg.DATASETS.COCO_JSON)
    return cfg


def _merge_file(cfg: CfgNode, path: str) -> None:
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such config file. See configs/ for those that come with the project.")
    try:
        cfg.merge_from_file(path, allow_unsafe=False)
    except yaml.constructor.ConstructorError as e:
        raise UserError(f"{path}: only plain yaml is read ({e.problem}); write lists as [a, b].") from e
    except yaml.YAMLError as e:
        raise UserError(f"{path}: not valid yaml: {' '.join(str(e).split())}") from e
    except FileNotFoundError as e:
        raise UserError(f"{path}: its _BASE_ {e.filename} does not exist; write it relative to the file.") from e
    except (KeyError, ValueError, AssertionError) as e:
        raise UserError(f"{path}: {_explain(cfg, e)}") from e


def _merge_opts(cfg: CfgNode, opts: list[str]) -> None:
    if len(opts) % 2:
        raise UserError(f"overrides come in pairs, KEY VALUE; got {len(opts)} words: {' '.join(opts)}")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, ValueError, AssertionError, AttributeError) as e:
            raise UserError(f"{key} {value}: {_explain(cfg, e, key)}") from e


def _explain(cfg: CfgNode, error: Exception, key: str = "") -> str:
    """A yacs error in one line, with the nearest existing keys when a key is unknown."""
    message = " ".join(str(error.args[0] if error.args else error).split())
    if not isinstance(error, (KeyError, AssertionError)) or "ey" not in message:
        return message
    key = key or message.rsplit(":", 1)[-1].strip()
    near = difflib.get_close_matches(key, _all_keys(cfg), n=3, cutoff=0.5)
    return f"there is no config key {key}" + (f"; did you mean {' or '.join(near)}?" if near else ".")


def _all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for name, value in node.items():
        keys += _all_keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [prefix + name]
    return keys
