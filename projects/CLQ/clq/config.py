"""Every config key of the project, and the one way to make a config.

Keys are read here and by builders (``from_config``, ``build_...``, ``check_...``); parts take plain arguments.
"""

import difflib
import logging
import os
import re
from collections.abc import Sequence

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build as loader

from clq.data.datasets import register_coco_json
from clq.errors import UserError
from clq.utils.config_tree import get_key

logger = logging.getLogger(__name__)


def add_clq_config(cfg: CfgNode) -> None:
    """Adds the project's keys, with their defaults, to a Detectron2 config (in place)."""
    _add_model(cfg)
    _add_training(cfg)


def _add_model(cfg: CfgNode) -> None:
    cfg.MODEL.SHUFFLENET = CfgNode()
    cfg.MODEL.SHUFFLENET.NAME = "shufflenet_v2_x1_0"  # of build_shufflenet_pan_backbone: torchvision's, x0_5 to x2_0
    # BN (learns) | FrozenBN (keeps the running statistics and affine parameters of MODEL.WEIGHTS: for small batches)
    cfg.MODEL.SHUFFLENET.NORM = "BN"
    cfg.MODEL.SHUFFLENET.ACTIVATION = "relu"  # relu | leaky_relu (slope 0.1, NanoDet)

    c = cfg.MODEL.CLQ = CfgNode()
    c.NUM_CLASSES = -1  # K; -1: as many as the first training set has
    c.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    c.CHECKPOINT_BACKBONE = False  # activation checkpointing of the ResNet's stages: less memory, more time
    # torch.compile of backbone and head, in training and inference. Losses and post-processing, whose shapes depend on
    # what is in the images, stay as they are. Each of the first few image sizes compiles it once more, for a range of
    # sizes; after torch's recompile limit (8) a size that no compiled form fits runs without.
    c.COMPILE = False
    c.RELU_BEFORE_P7 = False  # VFNet: P7 from P6 through a ReLU
    c.ANCHOR_SCALE = 8.0  # side of the one square anchor, in strides (ATSS)
    c.ANCHOR_OFFSET = 0.0  # its centre at (i + offset) * stride
    c.TOWERS = "separate"  # separate | shared (NanoDet) | interactive (TOOD: one, all of whose layers both sides read)
    c.CONV = "full"  # full | depthwise (NanoDet: 3x3 of each channel, then 1x1; 1x1 at the outputs)
    c.NUM_CONVS = 4  # depth of each tower
    c.CONV_DIM = 256  # its width
    c.NORM = "GN"  # its normalisation: any name that detectron2.layers.get_norm knows
    c.ACTIVATION = "relu"  # after its normalisation: relu | leaky_relu (slope 0.1, NanoDet)
    c.HEAD_PER_LEVEL = False  # a head for each level, nothing shared (NanoDet); otherwise one head for all levels
    c.LEVEL_SCALES = True  # each level has a learnable scale of its box prediction (NanoDet has none)
    c.PRIOR_PROB = 0.01  # class probability at initialisation (RetinaNet's pi)
    c.TOPK = 9  # k, candidates per level and ground truth (ATSS)

    c.ASSIGN = CfgNode()
    c.ASSIGN.NAME = "atss"  # atss | task (TOOD: by what is predicted, after a part of the training with ATSS)
    # That part, of SOLVER.MAX_ITER (TOOD: 4 epochs of 12); in it ATSS's losses are used. A training that is resumed
    # with another MAX_ITER has another part.
    c.ASSIGN.WARMUP = 0.33333
    c.ASSIGN.TASK_TOPK = 13  # k, locations per ground truth
    c.ASSIGN.TASK_ALPHA = 1.0  # alpha, exponent of the class score in the alignment
    c.ASSIGN.TASK_BETA = 6.0  # beta, exponent of the IoU

    c.BOX = CfgNode()
    c.BOX.CODING = "distribution"  # delta | distance (VFNet) | ltrb (TOOD) | distribution (GFL)
    c.BOX.WEIGHTS = [10.0, 10.0, 5.0, 5.0]  # of (dx, dy, dw, dh) with delta coding
    c.BOX.REG_MAX = 16  # n, last bin of each side's distribution (GFL), in strides
    c.BOX.LOSS_WEIGHT = 2.0  # of GIoU (2 in all variants; eq. 5 of CLQ's text says 1)
    c.BOX.DFL_WEIGHT = 0.25  # of distribution focal loss (GFL's lambda_1)
    # none | centerness (ATSS) | score (GFL, CLQ: the detached maximum of the score) | iou (VFNet: of the decoded box)
    # | alignment (TOOD: of ASSIGN.NAME task)
    c.BOX.WEIGHT_BY = "score"
    # The box losses are divided by the sum of these weights, or by this where the sum is smaller. MMDetection has 1 in
    # ATSS, GFL and VFNet; the authors of GFLv2, CLQ, NanoDet and TOOD have no floor: 0.
    c.BOX.WEIGHT_FLOOR = 0.0

    c.CLS = CfgNode()
    c.CLS.LOSS = "qfl"  # focal (target 1) | qfl (target IoU, eq. 4) | vfl (VFNet's varifocal loss, target IoU)
    c.CLS.BETA = 2.0  # beta of QFL (eq. 4)
    c.CLS.FOCAL_ALPHA = 0.25
    c.CLS.FOCAL_GAMMA = 2.0
    c.CLS.VFL_ALPHA = 0.75
    c.CLS.VFL_GAMMA = 2.0

    c.QUALITY = CfgNode()
    # none | centerness (ATSS, multiplied at test only) | iou (LQE: in the score, train and test)
    # | dgqp (GFLv2: from the box's distributions, in the score, train and test)
    # | task (TOOD: a map whose geometric mean with the class score is the score, train and test)
    c.QUALITY.NAME = "iou"
    c.QUALITY.ALPHA = 0.3  # alpha (eq. 2): score = cls * IoU^alpha
    c.QUALITY.LOSS_WEIGHT = 1.0  # of the branch's BCE (eq. 1)
    # Which tower the iou branch reads: cls (CLQ's authors: behind the alignment) | reg (as the paper's text says; what
    # checkpoints of this project's first version have). The centerness branch always reads the regression tower.
    c.QUALITY.TOWER = "cls"

    c.ALIGN = CfgNode()
    # none | learned (CLQ's authors: offsets by a 1x1 convolution on the regressed box) | geometric (this project's own:
    # taps spread over the box)
    c.ALIGN.NAME = "learned"
    c.ALIGN.OFFSET_GROUPS = 4  # of learned: groups of channels, each with offsets of its own
    # Of learned and geometric: share of the gradient that flows through the offsets into the box. The configs set 1 for
    # learned, 0 for geometric.
    c.ALIGN.GRADIENT = 1.0
    c.ALIGN.BACKEND = "auto"  # auto | torchvision (deform_conv2d) | grid_sample, gather (in plain torch); of star too

    c.REFINE = CfgNode()
    # none | star (VFNet: towers and box once more, along the box; needs BOX.CODING distance)
    # | sampling (TOOD: each side of the box read at a learnt place near by; needs BOX.CODING ltrb)
    c.REFINE.NAME = "none"
    c.REFINE.COARSE_LOSS_WEIGHT = 1.5  # of GIoU on the box before

    c.SCORE_THRESH = 0.05  # final score (ATSS: class score) below which nothing is a candidate
    c.TOPK_CANDIDATES = 1000  # per level, before NMS
    # What these count: pairs (of location and class, as MMDetection 3) | locations (by their best class, as MMDetection
    # 2.6, on which CLQ's authors built, and NanoDet, which also keep boxes without area)
    c.TOPK_COUNTS = "locations"
    c.NMS_THRESH = 0.6


def _add_training(cfg: CfgNode) -> None:
    # Data sets of your own, registered by name for every script: [{name: ..., json: ..., images: ...}]
    cfg.DATASETS.COCO_JSON = []
    # Two keys that Detectron2's samplers read and its defaults lack. The second is of main's Weighted*TrainingSampler:
    # [name, factor] pairs, each of a training set that is drawn from more or less often than the others (1).
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = cfg.DATALOADER.get("RANDOM_SUBSET_RATIO", 1.0)
    if hasattr(loader, "_build_weighted_sampler"):
        cfg.DATASETS.TRAIN_REPEAT_FACTOR = cfg.DATASETS.get("TRAIN_REPEAT_FACTOR", [])
    cfg.SOLVER.OPTIMIZER = "SGD"  # SGD | AdamW
    # Images a batch that BASE_LR is meant for: the rate used is BASE_LR * IMS_PER_BATCH / REFERENCE_BATCH. 0: BASE_LR.
    cfg.SOLVER.REFERENCE_BATCH = 16
    # Parts that each process's share of a batch goes through backbone and head in, one after the other: less memory, a
    # forward pass more. Gradients are those of the batch in one go, but where batch normalisation learns: that sees the
    # parts. IMS_PER_BATCH stays the images of a step.
    cfg.SOLVER.ACCUMULATE = 1
    cfg.SOLVER.EMA = CfgNode()  # exponential moving average of the weights, evaluated and saved beside them
    cfg.SOLVER.EMA.ENABLED = False
    cfg.SOLVER.EMA.DECAY = 0.9998  # of the average, a step; less in the first steps: (1 + n) / (10 + n) after n
    cfg.SOLVER.AMP.DTYPE = "auto"  # auto (CUDA: fp16 with loss scaling, CPU: bf16) | fp16 | bf16
    cfg.TEST.AMP = CfgNode()  # as SOLVER.AMP, of evaluation and demo
    cfg.TEST.AMP.ENABLED = False
    cfg.TEST.AMP.DTYPE = "auto"

    # The image as large as fits into SIZE, in the middle of a black frame, in training and test of a CLQ. It takes the
    # place of MIN_SIZE_TRAIN, MIN_SIZE_TEST and what goes with them.
    cfg.INPUT.LETTERBOX = CfgNode()
    cfg.INPUT.LETTERBOX.ENABLED = False
    cfg.INPUT.LETTERBOX.SIZE = [320, 320]  # height, width

    aug = cfg.INPUT.AUG = CfgNode()  # on top of Detectron2's resizing, INPUT.CROP and INPUT.RANDOM_FLIP
    aug.SCALE = [1.0, 1.0]  # A zoom factor is drawn from this range, before the crop or the letterbox.
    aug.SCALE_SAMPLING = "log"  # log (halving is as likely as doubling) | uniform (NanoDet)
    aug.SCALE_PROB = 1.0  # probability of a zoom (NanoDet: 0.5)
    aug.CROP = []  # [height, width] cut at random from the zoomed image, padded where it is smaller; empty: all of it
    # The image's centre moves by up to this share of width and height (NanoDet: 0.2). Only INPUT.LETTERBOX reads it.
    aug.SHIFT = 0.0
    aug.SHIFT_PROB = 1.0  # probability of such a shift (NanoDet: 0.5)
    aug.ROTATE90 = False  # a random quarter turn: for images without an up, such as aerial ones
    aug.FLIP_VERTICAL = False
    # Boxes of which augmentation leaves a smaller share are dropped. 0 keeps every box that has an area (NanoDet).
    aug.MIN_VISIBLE = 0.25
    aug.COLOR = 0.0  # brightness, contrast and saturation each scaled by a factor within 1 -+ this
    # NanoDet's colours, each changed with the probability COLOR_PROB, in this order and after COLOR. The values are
    # real numbers from then on and are not cut off at 0 and 255; borders and padding change with the image.
    aug.BRIGHTNESS = 0.0  # A number within -+ this share of 255 is added to all channels (NanoDet: 0.2).
    aug.CONTRAST = [1.0, 1.0]  # All values are multiplied by a factor from this range (NanoDet: [0.6, 1.4]).
    aug.SATURATION = [1.0, 1.0]  # The saturation (S of HSV) is multiplied by one from this (NanoDet: [0.5, 1.2]).
    aug.COLOR_PROB = 0.5


def setup_cfg(config_file: str | None, opts: Sequence[object] = ()) -> CfgNode:
    """Defaults, then the project's keys, then the file, then the overrides; registers ``DATASETS.COCO_JSON``.

    Nothing in the file executes: tags such as ``!!python/object`` are refused. A config that asks for CUDA on a machine
    without one is moved to the CPU, and says so in the log.

    Args:
        config_file: path of a yaml file (its ``_BASE_`` is followed), or None for the defaults.
        opts: ``KEY VALUE KEY VALUE ...`` overrides; a value may be text, as from a command line, or what it stands for.

    Raises:
        UserError: no such file, yaml that is not plain, an unknown key, a value of the wrong type, no such device.
    """
    cfg = get_cfg()
    add_clq_config(cfg)
    if config_file:
        _merge_file(cfg, config_file)
    _merge_opts(cfg, list(opts))
    cfg.MODEL.DEVICE = _device_here(cfg.MODEL.DEVICE)
    # Absolute from here on, so that the config that a training saves works from any folder.
    cfg.DATASETS.COCO_JSON = register_coco_json(cfg.DATASETS.COCO_JSON)
    return cfg


def _device_here(name: str) -> str:
    """The device of this machine for ``MODEL.DEVICE``: the CPU for a GPU where there is none."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as e:
        raise UserError(f"MODEL.DEVICE {name}: no such device; use cuda, cuda:0, cuda:1, ... or cpu.") from e
    if device.type != "cuda":
        return name
    if not torch.cuda.is_available():
        logger.warning("No CUDA device here: MODEL.DEVICE %s -> cpu", name)
        return "cpu"
    if (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"MODEL.DEVICE {name}: this machine has {torch.cuda.device_count()} GPU(s), counted from 0.")
    return name


def _merge_file(cfg: CfgNode, path: str) -> None:
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such config file. See configs/ for those that come with the project.")
    try:
        _keep_older_meaning(cfg, path)
        cfg.merge_from_file(path, allow_unsafe=False)
    except yaml.constructor.ConstructorError as e:
        raise UserError(f"{path}: only plain yaml is read ({e.problem}); write lists as [a, b].") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid yaml: {' '.join(str(e).split())}") from e
    except OSError as e:
        raise UserError(f"{path}: {e.filename} cannot be read ({e.strerror}); a _BASE_ is relative to its file.") from e
    except RecursionError as e:
        raise UserError(f"{path}: is its own _BASE_, by way of others or directly; name another.") from e
    except (TypeError, AttributeError) as e:  # yacs takes it for granted that files and groups are mappings
        raise UserError(
            f"{path}: it or its _BASE_ is not nested KEY: value pairs as in configs/, or is empty; correct it."
        ) from e
    except (KeyError, ValueError, AssertionError) as e:
        raise UserError(f"{path}: {_explain(cfg, e)}") from e


def _keep_older_meaning(cfg: CfgNode, path: str) -> None:
    """Sets what a config meant that a training saved while CLQ followed the paper's text.

    Such a config is whole and names QUALITY.TARGET. Its detector then gives what it gave.

    Raises:
        UserError: QUALITY.TARGET stands beside keys of today.
    """
    quality = CfgNode.load_yaml_with_base(path, allow_unsafe=False)
    for name in ("MODEL", "CLQ", "QUALITY"):
        quality = quality.get(name) if isinstance(quality, dict) else None
    if not isinstance(quality, dict) or "TARGET" not in quality:
        return
    if "TOWER" in quality:
        raise UserError(
            f"{path}: there is no config key MODEL.CLQ.QUALITY.TARGET any more; the quality branch learns the IoU of "
            "the decoded box. Take it out."
        )
    cfg.register_deprecated_key("MODEL.CLQ.QUALITY.TARGET")
    c = cfg.MODEL.CLQ
    c.QUALITY.TOWER, c.ALIGN.OFFSET_GROUPS, c.ALIGN.GRADIENT = "reg", 1, 0.0
    c.BOX.WEIGHT_FLOOR, c.TOPK_COUNTS = 1.0, "pairs"
    if quality.get("NAME") == "iou":
        logger.warning(
            "%s: saved by an older version, in which CLQ followed the paper's text. The detector is the one that it "
            "was; training goes on with the IoU of the decoded box as target of class and quality (then: IoU^alpha, "
            "and QUALITY.TARGET %s).",
            path,
            quality["TARGET"],
        )


def _merge_opts(cfg: CfgNode, opts: list) -> None:
    if len(opts) % 2:
        raise UserError(f"overrides come in pairs, KEY VALUE; got {len(opts)} words: {' '.join(map(str, opts))}")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        try:
            if key == "DATASETS.COCO_JSON" and isinstance(value, str):
                value = yaml.safe_load(value)  # written as in a file: [{name: a, json: b.json, images: c}]
            cfg.merge_from_list([key, value])
        except yaml.YAMLError as e:
            raise UserError(f"{key} {value}: write '[{{name: a, json: b.json, images: c}}]', in quotes.") from e
        except (TypeError, AttributeError) as e:  # not a string, or goes on below a value
            raise UserError(f"{key} {value}: {_unknown(cfg, str(key))}") from e
        except (KeyError, ValueError, AssertionError) as e:
            raise UserError(f"{key} {value}: {_explain(cfg, e)}") from e


def _explain(cfg: CfgNode, error: Exception) -> str:
    """An error of yacs in one line: the keys that exist beside an unknown one, how to write a value of another type."""
    message = " ".join(str(error.args[0] if error.args else error).split())
    if match := re.fullmatch(r"Non-existent (?:config )?key: ?(\S*)", message):
        return _unknown(cfg, match[1])
    match = re.fullmatch(r"Type mismatch \(<class '(\S+)'> vs. <class '(\S+)'>\) .* for config key: (\S+)", message)
    if not match:
        return message
    wanted, given, key = match.groups()
    value = get_key(cfg, key)
    if isinstance(value, CfgNode):
        return f"{key} is a group of keys ({', '.join(value)}), not a value."
    # The value that is there shows how one is written: 2.0 where a float is wanted, ('a',) for a tuple.
    return f"{key} must be of type {wanted}, such as {value!r}; this is of type {given.rsplit('.', 1)[-1]}."


def _unknown(cfg: CfgNode, key: str) -> str:
    near = difflib.get_close_matches(key, _all_keys(cfg), n=3, cutoff=0.5)
    return f"there is no config key {key}" + (f"; did you mean {' or '.join(near)}?" if near else ".")


def _all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for name, value in node.items():
        keys += _all_keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [prefix + name]
    return keys
