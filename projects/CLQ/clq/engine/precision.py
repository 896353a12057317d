"""Mixed precision as the config asks for it: of training, ``SOLVER.AMP``, and of evaluation and demo, ``TEST.AMP``."""

import torch
from detectron2.config import CfgNode

from clq.errors import UserError

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def autocast_dtype(cfg: CfgNode, group: str) -> torch.dtype | None:
    """The type that convolutions and matrix products run in; None: float32, without autocast.

    Args:
        cfg: of a training or a trained model.
        group: ``SOLVER`` or ``TEST``, whose ``AMP`` counts. Its ``auto`` is fp16 on a GPU, bf16 elsewhere.

    Raises:
        UserError: a type that does not exist.
    """
    amp = cfg[group].AMP
    if amp.DTYPE not in ("auto", *_DTYPES):
        raise UserError(f"{group}.AMP.DTYPE: {amp.DTYPE} is not one of auto, {', '.join(_DTYPES)}.")
    if not amp.ENABLED:
        return None
    if amp.DTYPE == "auto":
        return torch.float16 if cfg.MODEL.DEVICE.startswith("cuda") else torch.bfloat16
    return _DTYPES[amp.DTYPE]


def inference_autocast(cfg: CfgNode) -> torch.autocast:
    """A context in which a model detects in the types of ``TEST.AMP``.

    Raises:
        UserError: see :func:`autocast_dtype`.
    """
    dtype = autocast_dtype(cfg, "TEST")
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, dtype, enabled=dtype is not None)
