"""The optimizer of a training, its learning rate, and whether a checkpoint's optimizer can take its place."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn
from torch.utils import _foreach_utils

from clq.config import check_keys
from clq.errors import UserError, blamed_on

logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Builds ``SOLVER.OPTIMIZER`` with :func:`learning_rate`, gradient clipping and Detectron2's parameter groups.

    Raises:
        UserError: the optimizer is unknown, or refuses its settings.
    """
    check_keys(cfg, "SOLVER")
    lr, s = learning_rate(cfg), cfg.SOLVER
    kinds = {
        "SGD": (torch.optim.SGD, {"momentum": s.MOMENTUM, "nesterov": s.NESTEROV}),
        "AdamW": (torch.optim.AdamW, {"fused": has_fused_kernels(model)}),  # one pass over the weights instead of ten
    }
    kind, kwargs = kinds[s.OPTIMIZER]
    params = get_default_optimizer_params(
        model,
        base_lr=lr,
        weight_decay_norm=s.WEIGHT_DECAY_NORM,
        bias_lr_factor=s.BIAS_LR_FACTOR,
        weight_decay_bias=s.WEIGHT_DECAY_BIAS,
    )
    with blamed_on("SOLVER.BASE_LR, MOMENTUM, WEIGHT_DECAY and CLIP_GRADIENTS"):
        return maybe_add_gradient_clipping(cfg, kind)(params, lr=lr, weight_decay=s.WEIGHT_DECAY, **kwargs)


def learning_rate(cfg: CfgNode) -> float:
    """Scales ``SOLVER.BASE_LR`` linearly from ``SOLVER.REFERENCE_BATCH`` to ``SOLVER.IMS_PER_BATCH`` and logs it."""
    base, batch, reference = cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_BATCH
    if reference <= 0:
        logger.info("Learning rate %g: SOLVER.BASE_LR, not scaled (SOLVER.REFERENCE_BATCH is 0)", base)
        return base
    lr = base * batch / reference
    logger.info("Learning rate %g = SOLVER.BASE_LR %g x %d images per batch / %d", lr, base, batch, reference)
    return lr


def has_fused_kernels(model: nn.Module) -> bool:
    """Whether the installed torch has fused optimizers for all devices of the model's parameters.

    Fused kernels exist on CUDA, and on CPUs since torch 2.4. Torch has no public list of these devices. If it has no
    private list either, CUDA is taken to be the only one.
    """
    devices = getattr(_foreach_utils, "_get_fused_kernels_supported_devices", lambda: ["cuda"])()
    return all(p.device.type in devices for p in model.parameters())


def adopt_groups(ours: list[dict], saved: list[dict], name: str) -> None:
    """Checks that the parameter groups of a checkpoint's optimizer can continue a training, and adapts them in place.

    Args:
        ours: parameter groups of the training's optimizer.
        saved: those of the checkpoint.
        name: name of the training's optimizer, for messages.

    Raises:
        UserError: they are of another optimizer, or of other parameters.
    """
    if ("betas" in saved[0]) != ("betas" in ours[0]):
        raise UserError(
            f"SOLVER.OPTIMIZER {name}: the checkpoint to resume was trained with another one; use that, or start a new "
            "training from the checkpoint as MODEL.WEIGHTS."
        )
    if [len(g["params"]) for g in saved] != [len(g["params"]) for g in ours]:
        raise UserError(
            "--resume: the optimizer in the checkpoint has other parameter groups; set SOLVER.WEIGHT_DECAY_NORM, "
            "WEIGHT_DECAY_BIAS, BIAS_LR_FACTOR and MODEL.BACKBONE.FREEZE_AT as they were, or start a new training from "
            "it as MODEL.WEIGHTS."
        )
    if saved[0].get("initial_lr") != ours[0]["initial_lr"]:
        rates = ours[0]["initial_lr"], saved[0]["initial_lr"]
        logger.warning("Learning rate %g is not used: the resumed training continues with its own, %g", *rates)
    for theirs, group in zip(saved, ours, strict=True):
        if "fused" in group:  # a property of the machine: this one may have no fused kernels
            theirs["fused"] = group["fused"]
